"""Files and folders on disk: expert file, anchor, model folder, merged folder, manifest, signature, card."""
