"""Reading a posterior: predictive quality, inclusion, pictures, ArviZ."""
