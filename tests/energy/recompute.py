"""A second implementation of carbon and water, from docs/explanation/energy-and-carbon.md alone.

It shares nothing with Tallystick: the standard library reads the bytes, ``fractions`` computes, and DuckDB
does the same once more in SQL over an export. It leaves out the embodied share of a logged record:
that needs the busy time, which records do not state.
"""

from __future__ import annotations

import json
from fractions import Fraction
from hashlib import sha256
from math import floor

UJ_PER_KWH = Fraction(36 * 10**11)


def carbon_and_water(record: bytes, factor_set: bytes) -> dict[str, int]:
    """What a record with these factors must state, given its energy. Both are canonical JSON.

    Raises:
        ValueError: the record does not name this factor set.
    """
    told, factors = json.loads(record), json.loads(factor_set)
    if told["factors"] != sha256(factor_set).hexdigest():
        raise ValueError("the record names another factor set")
    energy = told["energy"]
    at_plug = {
        end: Fraction(energy.get(name, energy["energy_uj"])) * factors["pue_milli"]
        for end, name in (("", "energy_uj"), ("low", "low_uj"), ("high", "high_uj"))
    }
    grid = factors["intensity_ug_per_kwh"]
    low_grid = factors.get("intensity_low_ug_per_kwh", grid)
    high_grid = factors.get("intensity_high_ug_per_kwh", grid)
    made = {"carbon_ng": at_plug[""] * grid}
    if {at_plug["low"], at_plug["high"]} != {at_plug[""]} or {low_grid, high_grid} != {grid}:
        made["carbon_low_ng"] = at_plug["low"] * low_grid
        made["carbon_high_ng"] = at_plug["high"] * high_grid
    if "market_ug_per_kwh" in factors:
        made["carbon_market_ng"] = at_plug[""] * factors["market_ug_per_kwh"]
    site, source = factors.get("water_ul_per_kwh"), factors.get("source_water_ul_per_kwh")
    if site is not None or source is not None:
        made["water_nl"] = energy["energy_uj"] * 1000 * Fraction(site or 0) + at_plug[""] * (source or 0)
    return {name: half_up(value / UJ_PER_KWH) for name, value in made.items()}


def embodied(factor_set: bytes, busy_us: int) -> int:
    """The embodied share in nanograms, for a generation whose busy time is known."""
    return half_up(Fraction(json.loads(factor_set)["embodied_ng_per_s"] * busy_us, 10**6))


def half_up(value: Fraction) -> int:
    """The nearest whole number; the upper one of two."""
    return floor(value + Fraction(1, 2))


SQL = """
WITH factors AS (
  SELECT sha256(body) AS digest,
         CAST(body->>'pue_milli' AS HUGEINT) AS pue,
         CAST(body->>'intensity_ug_per_kwh' AS HUGEINT) AS grid,
         CAST(body->>'intensity_low_ug_per_kwh' AS HUGEINT) AS grid_low,
         CAST(body->>'intensity_high_ug_per_kwh' AS HUGEINT) AS grid_high,
         CAST(body->>'market_ug_per_kwh' AS HUGEINT) AS market,
         CAST(body->>'water_ul_per_kwh' AS HUGEINT) AS site_water,
         CAST(body->>'source_water_ul_per_kwh' AS HUGEINT) AS source_water
  FROM (SELECT CAST(payload::JSON->'factors' AS VARCHAR) AS body
        FROM read_parquet(getvariable('folder') || '/_log/statements.parquet') WHERE kind = 'factors')
), products AS (
  SELECT records.*, digest, pue * energy_uj * grid AS carbon,
         pue * coalesce(energy_low_uj, energy_uj) * coalesce(grid_low, grid) AS low,
         pue * coalesce(energy_high_uj, energy_uj) * coalesce(grid_high, grid) AS high,
         pue * energy_uj * market AS on_market,
         CASE WHEN site_water IS NULL AND source_water IS NULL THEN NULL
              ELSE energy_uj * (1000 * coalesce(site_water, 0) + pue * coalesce(source_water, 0)) END AS water
  FROM read_parquet(getvariable('folder') || '/records/**/*.parquet') AS records
  LEFT JOIN factors ON digest = records.factors
  WHERE carbon_ng IS NOT NULL
), recomputed AS (
  SELECT *, (2 * carbon + 3600000000000::HUGEINT) // 7200000000000 AS carbon_again,
         (2 * low + 3600000000000::HUGEINT) // 7200000000000 AS low_again,
         (2 * high + 3600000000000::HUGEINT) // 7200000000000 AS high_again,
         (2 * on_market + 3600000000000::HUGEINT) // 7200000000000 AS market_again,
         (2 * water + 3600000000000::HUGEINT) // 7200000000000 AS water_again
  FROM products
)
SELECT count(*) AS records,
       count(*) FILTER (WHERE digest IS NULL) AS without_factors,
       count(*) FILTER (WHERE carbon_again IS DISTINCT FROM carbon_ng
         OR low_again IS DISTINCT FROM coalesce(carbon_low_ng, carbon_ng)
         OR high_again IS DISTINCT FROM coalesce(carbon_high_ng, carbon_ng)
         OR market_again IS DISTINCT FROM carbon_market_ng
         OR water_again IS DISTINCT FROM water_nl) AS wrong
FROM recomputed
"""
"""Over an export; the variable ``folder`` names it. No float anywhere: HUGEINT has 127 bits, and the largest
product 2 x 2^53 x 100,000 x 3 x 10^9 has 104."""
