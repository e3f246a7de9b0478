"""The calls to actors, in the process of a caller (a job, the gateway, another actor): finding and calling them."""
