"""The verbs beside Lightning's: plain functions, from whose signatures their command lines are made."""

from __future__ import annotations

#: Where the function of each verb is, or its functions by a second word.
COMMANDS = {
    "list": "fgzoo.commands.list.list_names",
    "download": "fgzoo.commands.download.download",
    "publish": "fgzoo.commands.publish.publish_run",
    "data": "fgzoo.commands.data.ACTIONS",
    "predict": "fgzoo.commands.predict.predict",
    "explain": "fgzoo.commands.explain.explain",
    "report": "fgzoo.commands.report.report",
    "export": "fgzoo.commands.export.export",
    "serve": "fgzoo.commands.serve.serve",
}
