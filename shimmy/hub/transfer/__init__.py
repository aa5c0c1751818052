"""PARENT. Bytes over the network into files: TLS, redirects, ranges, resumption, digests. No hub is known here."""
