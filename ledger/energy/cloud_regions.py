"""Owns where cloud regions are: the grid zone of each, by the providers' own public lists of regions.

Google's regions come from the package `codecarbon`, which ships their grid intensity too (see ``grid_data``).
A zone is an ISO 3166-1 alpha-3 code, or ``US-XX`` for a state, which the packages have figures for.
"""

from __future__ import annotations

__all__ = ["zone_of_region"]

_AWS = """
us-east-1 US-VA  us-east-2 US-OH  us-west-1 US-CA  us-west-2 US-OR  ca-central-1 CAN  ca-west-1 CAN
mx-central-1 MEX  sa-east-1 BRA  eu-west-1 IRL  eu-west-2 GBR  eu-west-3 FRA  eu-central-1 DEU
eu-central-2 CHE  eu-north-1 SWE  eu-south-1 ITA  eu-south-2 ESP  il-central-1 ISR
me-south-1 BHR  me-central-1 ARE
af-south-1 ZAF  ap-south-1 IND  ap-south-2 IND  ap-southeast-1 SGP  ap-southeast-2 AUS  ap-southeast-3 IDN
ap-southeast-4 AUS  ap-southeast-5 MYS  ap-southeast-7 THA  ap-east-1 HKG  ap-northeast-1 JPN
ap-northeast-2 KOR  ap-northeast-3 JPN
"""
_AZURE = """
eastus US-VA  eastus2 US-VA  centralus US-IA  northcentralus US-IL  southcentralus US-TX  westcentralus US-WY
westus US-CA  westus2 US-WA  westus3 US-AZ  canadacentral CAN  canadaeast CAN  mexicocentral MEX
brazilsouth BRA  northeurope IRL  westeurope NLD  uksouth GBR  ukwest GBR  francecentral FRA  francesouth FRA
germanywestcentral DEU  germanynorth DEU  switzerlandnorth CHE  switzerlandwest CHE  norwayeast NOR
norwaywest NOR  swedencentral SWE  polandcentral POL  italynorth ITA  spaincentral ESP  israelcentral ISR
uaenorth ARE  uaecentral ARE  qatarcentral QAT  southafricanorth ZAF  southafricawest ZAF  centralindia IND
southindia IND  westindia IND  japaneast JPN  japanwest JPN  koreacentral KOR  koreasouth KOR
southeastasia SGP  eastasia HKG  australiaeast AUS  australiasoutheast AUS  australiacentral AUS
newzealandnorth NZL
"""


def _table(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


_REGIONS = {"aws": _table(_AWS), "azure": _table(_AZURE)}


def zone_of_region(cloud: str, region: str) -> str | None:
    """The grid zone of a region of ``aws`` or ``azure``; None if it is not in the table."""
    return _REGIONS.get(cloud, {}).get(region)
