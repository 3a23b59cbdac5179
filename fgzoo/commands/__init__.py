"""The verbs beside Lightning's."""
