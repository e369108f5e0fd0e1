"""Files and batches of the gateway: requests that are worked on in the gaps of what callers wait for."""
