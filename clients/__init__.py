"""Client procedures: how a client turns a task into an update."""
