"""PARENT. HTTP/1.1: listening sockets, all connections, one connection. Knows no route."""
