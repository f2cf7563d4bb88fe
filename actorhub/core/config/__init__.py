"""Settings: one table, read from flags and keywords, the environment, `actorhub.toml` and defaults, in that order."""

from actorhub.core.config.keywords import SettingKeywords
from actorhub.core.config.load import Origin, load_settings
from actorhub.core.config.settings import SETTINGS, Setting, Settings
from actorhub.core.config.values import HostPort, mask_secrets

__all__ = ["SETTINGS", "HostPort", "Origin", "Setting", "SettingKeywords", "Settings", "load_settings", "mask_secrets"]
