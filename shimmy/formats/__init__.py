"""PARENT AND WORKER. Model files on the disk. The parent reads headers, so nothing imports numpy at the top."""
