"""Transfer: checkpoints and recordings come in, predictivity tables and reports come out."""
