"""PARENT AND WORKER. Families whose layers rotate within a window and not beyond one, and others of their makers."""
