"""What was used for whom: receipts of answers, a log that shows if it was changed, and statements by owner."""
