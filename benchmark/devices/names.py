"""What a phone's maker calls it, by the name that the phone itself tells.

Sources: Apple's product types and Samsung's model numbers, as the makers' specification pages list them.
"""

from __future__ import annotations

_IPHONES = {
    "8,1": "6s", "8,2": "6s Plus", "8,4": "SE", "9,1": "7", "9,3": "7", "9,2": "7 Plus", "9,4": "7 Plus",
    "10,1": "8", "10,4": "8", "10,2": "8 Plus", "10,5": "8 Plus", "10,3": "X", "10,6": "X",
    "11,2": "XS", "11,4": "XS Max", "11,6": "XS Max", "11,8": "XR", "12,1": "11", "12,3": "11 Pro", "12,5": "11 Pro Max", "12,8": "SE 2",
    "13,1": "12 mini", "13,2": "12", "13,3": "12 Pro", "13,4": "12 Pro Max",
    "14,4": "13 mini", "14,5": "13", "14,2": "13 Pro", "14,3": "13 Pro Max", "14,6": "SE 3",
    "14,7": "14", "14,8": "14 Plus", "15,2": "14 Pro", "15,3": "14 Pro Max",
    "15,4": "15", "15,5": "15 Plus", "16,1": "15 Pro", "16,2": "15 Pro Max",
    "17,3": "16", "17,4": "16 Plus", "17,1": "16 Pro", "17,2": "16 Pro Max", "17,5": "16e",
    "18,3": "17", "18,1": "17 Pro", "18,2": "17 Pro Max", "18,4": "Air",
}  # fmt: skip
_GALAXIES = {
    "SM-G981": "S20", "SM-G986": "S20+", "SM-G988": "S20 Ultra", "SM-G991": "S21", "SM-G996": "S21+", "SM-G998": "S21 Ultra",
    "SM-S901": "S22", "SM-S906": "S22+", "SM-S908": "S22 Ultra", "SM-S911": "S23", "SM-S916": "S23+", "SM-S918": "S23 Ultra",
    "SM-S921": "S24", "SM-S926": "S24+", "SM-S928": "S24 Ultra", "SM-S931": "S25", "SM-S936": "S25+", "SM-S938": "S25 Ultra",
}  # fmt: skip


def marketing(model: str) -> str:
    """The name in the shops of `iPhone13,4` or `SM-S921B`; empty if it is not known."""
    if name := _IPHONES.get(model.removeprefix("iPhone")):
        return f"iPhone {name}" if model.startswith("iPhone") else ""
    return next((f"Galaxy {name}" for number, name in _GALAXIES.items() if model.startswith(number)), "")
