"""How a file comes to its place: staging, manifest, report, what lies beside it, processes of its own."""
