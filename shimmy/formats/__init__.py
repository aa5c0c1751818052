"""PARENT AND WORKER. Model files as they are on the disk. The parent reads headers, so nothing imports numpy at the top."""
