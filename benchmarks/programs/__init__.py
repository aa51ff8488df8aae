"""The programs that are measured: one server and one client per library, each as its manual would write it.

They run in the environment of the benchmarks, which has the peers; nothing else imports them. A peer keeps
its defaults, but for what a case needs.
"""
