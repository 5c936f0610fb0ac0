"""How the root scripts start under Hydra: settings to options, help, and the summary at the end of a run."""
