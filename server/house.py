# SPDX-License-Identifier: Apache-2.0
"""What one `aerie serve` shares between its middlewares, its routes and its supervisor."""

from aerie.server.exchange import Exchanges
from aerie.server.loader import Engine
from aerie.server.occupancy import Occupancy
from aerie.server.plan import Plan
from aerie.server.readiness import Readiness
from aerie.server.settings import ServeSettings
from aerie.server.telemetry import Telemetry


class House:
    """The parts that live as long as the process; the engine may be another one after a restart."""

    def __init__(self, settings: ServeSettings, positions: int = 0) -> None:
        """`positions` is K, the tokens drafted for a step; 0 without a draft."""
        self.readiness = Readiness(restarts=settings.restart_engine > 0)
        self.telemetry = Telemetry(positions)
        self.occupancy = Occupancy(settings.max_queued_requests, settings.max_queued_tokens)
        self.exchanges = Exchanges()
        self.plan: Plan | None = None
        self.engine: Engine | None = None
