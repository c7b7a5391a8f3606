"""The update of a policy on a mesh of devices."""
