"""KAI's settings (`kai.scheduler/v1`): a SchedulingShard for every node pool, and the Config of the installation.

Only the fields that Capstan reads; docs/shards.md says which others it accepts and why it does not need them.
"""

from __future__ import annotations

import msgspec

from capstan.api.base import Condition, Object, Struct

CONFIG_NAME = "kai-config"


class PlacementStrategy(Struct):
    gpu: str = ""
    cpu: str = ""


class MinRuntime(Struct):
    preempt_min_runtime: str = ""
    reclaim_min_runtime: str = ""


class UsageParams(Struct):
    half_life_period: str = ""
    window_size: str = ""
    window_type: str = ""
    tumbling_window_start_time: str | None = None
    cron_string: str = ""
    fetch_interval: str = ""
    staleness_period: str = ""
    wait_timeout: str = ""
    extra_params: dict[str, str] = {}


class UsageDBConfig(Struct):
    client_type: str = ""
    usage_params: UsageParams = msgspec.field(default_factory=UsageParams)


class ScenarioSearchBudgets(Struct):
    max_action_search_duration: dict[str, str] = {}
    max_generator_search_duration: dict[str, str] = {}
    max_job_search_duration: str = ""
    min_job_search_duration: str = ""


class PluginConfig(Struct):
    enabled: bool | None = None
    priority: int | None = None
    arguments: dict[str, str] = {}


class ActionConfig(Struct):
    enabled: bool | None = None
    priority: int | None = None


class SchedulingShardSpec(Struct):
    args: dict[str, str] = {}
    placement_strategy: PlacementStrategy = msgspec.field(default_factory=PlacementStrategy)
    partition_label_value: str = ""
    queue_depth_per_action: dict[str, int] = {}
    min_runtime: MinRuntime = msgspec.field(default_factory=MinRuntime)
    k_value: float | None = None
    usage_db_config: UsageDBConfig | None = msgspec.field(default=None, name="usageDBConfig")
    scenario_search_budgets: ScenarioSearchBudgets = msgspec.field(default_factory=ScenarioSearchBudgets)
    plugins: dict[str, PluginConfig] = {}
    actions: dict[str, ActionConfig] = {}


class SettingsStatus(Struct):
    conditions: list[Condition] = []


class SchedulingShard(Object):
    spec: SchedulingShardSpec = msgspec.field(default_factory=SchedulingShardSpec)
    status: SettingsStatus = msgspec.field(default_factory=SettingsStatus)


class Global(Struct):
    scheduler_name: str = ""
    queue_label_key: str = ""
    node_pool_label_key: str = ""


class Admission(Struct):
    gpu_sharing: bool | None = None


class QueueController(Struct):
    """Both maps are written `key=value,key=value`."""

    metrics_namespace: str = ""
    queue_label_to_metric_label: str = ""
    queue_label_to_default_metric_value: str = ""


class ConfigSpec(Struct):
    global_: Global = msgspec.field(default_factory=Global, name="global")
    admission: Admission = msgspec.field(default_factory=Admission)
    queue_controller: QueueController = msgspec.field(default_factory=QueueController)


class Config(Object):
    spec: ConfigSpec = msgspec.field(default_factory=ConfigSpec)
    status: SettingsStatus = msgspec.field(default_factory=SettingsStatus)
