"""Neural recordings of any supported source in one form, with their splits, reliabilities and simulations."""
