"""Azure Machine Learning jobs: their pods carry the number of nodes in the environment."""

from __future__ import annotations

from capstan.grouping.gang import Gang, Workload
from capstan.grouping.reading import Field

_NODES = "AZUREML_NODE_COUNT"


def aml_job(workload: Workload) -> Gang:
    """One pod per node, all together; a job without the variable may start with one."""
    for container in Field.of(workload.pod)["spec"]["containers"].items():
        for variable in container["env"].items():
            text = variable["value"].text()
            if variable["name"].text() == _NODES and text:
                if not (text.isascii() and text.isdigit() and len(text) <= 9 and int(text)):
                    raise variable["value"].wrong(f'{_NODES} is {text!r}; write a number of nodes, e.g. "2"')
                return Gang(workload.top, "train", min_member=int(text))
    return Gang(workload.top, "train")
