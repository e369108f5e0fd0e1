"""What noisy boxes are to each other and to their content, as numbers that the transformer of `layout` reads.

The quantities that checks are about (gaps between siblings, room to the parent's edges, how far a box's children reach, the
height that its text needs at its width), of boxes as they are at this noise level, in several magnitudes, since pixels decide.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nereid.layout.canvas import Breakpoint, Canvas
from nereid.layout.content import BREAKING, ITEM_GAP, line_height
from nereid.layout.elements import ElementClass
from nereid.layout.tokens import CANVAS, ITEMS_UNIT, LINE_UNIT, MOST_LINE, SCALE, Content

MAGNITUDES = (4.0, 16.0, 64.0)
"""A unit times so much is told as tanh: the last saturates at some 10 px."""
DISTANCES, FLAGS = 17, 3
RELATIONS = DISTANCES * (1 + len(MAGNITUDES)) + FLAGS
"""Numbers of an element."""
_FAR = 1e3
"""Units."""
_MOBILE = CANVAS - len(Breakpoint) + list(Breakpoint).index(Breakpoint.MOBILE)
_LIST = list(ElementClass).index(ElementClass.LIST)
_LINES = [[line_height(kind, Canvas.of(width)) for kind in ElementClass] for width in (1280, 320)]
"""CSS pixels of a line of each class, on a desktop's canvas and on a mobile's."""


def relations(boxes: Tensor, classes: Tensor, parents: Tensor, content: Tensor, canvas: Tensor) -> Tensor:
    """B x N x RELATIONS. A row's numbers depend on that row alone, whatever it is padded to."""
    start = torch.cat([boxes[..., :1] + canvas[:, None, :1] / 2, boxes[..., 1:2] + 1], -1)
    size = boxes[..., 2:] + 1
    end = start + size
    places = torch.arange(1, boxes.shape[1] + 1, device=boxes.device)
    valid = content[..., Content.SIBLINGS] > 0
    # N x N: of the row's elements, which the column's are
    holds = (parents[:, :, None] == places) & valid[:, None, :]
    alike = (parents[:, :, None] == parents[:, None, :]) & valid[:, :, None] & valid[:, None, :]
    before, after = alike & (places[None, :, None] > places), alike & (places[None, :, None] < places)
    child = (parents[:, None, :] == places[:, None]) & valid[:, None, :]
    last = before & (places == (before * places).amax(-1, keepdim=True))
    first = after & (places == torch.where(after, places, _FAR).amin(-1, keepdim=True))
    corners = torch.cat([start, end], -1)
    parent, previous, following = (_of(which, corners) for which in (holds, last, first))
    bottom = torch.where(valid, end[..., 1], end.new_zeros(())).amax(-1, keepdim=True)
    whole = torch.stack([canvas[:, :1].expand_as(bottom), bottom], -1)
    inside, has_previous, has_following, has_child = (which.any(-1, keepdim=True) for which in (holds, before, after, child))
    parent_end = torch.where(inside, parent[..., 2:], whole)
    across = (start[:, :, None, 0] < end[:, None, :, 0]) & (start[:, None, :, 0] < end[:, :, None, 0])
    above = torch.where(before & across, end[:, None, :, 1], parent[..., 1:2]).amax(-1, keepdim=True)
    needed = needed_heights(size[..., :1], classes, content, canvas)
    distances = [
        start - parent[..., :2],
        parent_end - end,
        (start - previous[..., 2:]) * has_previous,
        (start - previous[..., :2]) * has_previous,
        (following[..., :2] - end) * has_following,
        (_reach(child, start, -1) - start) * has_child,
        (end - _reach(child, end, 1)) * has_child,
        start[..., 1:] - above,
        size[..., 1:] - needed,
        needed,
    ]
    told = torch.cat(distances, -1)
    flags = torch.cat([has_previous, has_following, has_child], -1).to(told.dtype)
    return torch.cat([told / 4, *(torch.tanh(told * magnitude) for magnitude in MAGNITUDES), flags], -1)


def _of(which: Tensor, corners: Tensor) -> Tensor:
    """B x N x 4: the corners of the one element that is `which` (B x N x N), 0 where none is."""
    return (which[..., None] * corners[:, None]).sum(2)


def _reach(which: Tensor, edges: Tensor, sign: int) -> Tensor:
    """B x N x 2: how far those that are `which` (B x N x N) reach, down (-1) or up (1)."""
    among = torch.where(which[..., None], sign * edges[:, None], edges.new_full((), -_FAR))
    return sign * among.amax(2)


def needed_heights(width: Tensor, classes: Tensor, content: Tensor, canvas: Tensor) -> Tensor:
    """B x N x 1, in units: `nereid.layout.content.needed_height` at these widths (B x N x 1, units) from what tokens tell.

    Of elements with a ratio it is the height that keeps it.
    """
    usual, small = torch.tensor(_LINES, dtype=width.dtype, device=width.device) / SCALE
    line = torch.where(canvas[:, _MOBILE, None] > 0.5, small[classes], usual[classes])[..., None]
    ratio, least = _told(content, Content.RATIO), _told(content, Content.LEAST_HEIGHT)
    listed = (classes == _LIST)[..., None]  # the others' text is one, whatever they are said to have
    items = torch.where(listed, (_told(content, Content.ITEMS) * ITEMS_UNIT).round().clamp(min=1), torch.ones_like(ratio))
    line_long = _told(content, Content.LINE)  # up to so many units; beyond them its logarithm tells
    beyond = torch.exp(_told(content, Content.LINE_LOGARITHM)) - 1
    long = torch.where(line_long < MOST_LINE / LINE_UNIT, line_long * LINE_UNIT, beyond) / items
    lines = torch.where(long <= width, torch.ones_like(long), torch.ceil(long * BREAKING / width.clamp(min=1 / SCALE)))
    text = items * lines * line + (items - 1) * (ITEM_GAP / SCALE)
    high = torch.where((line > 0) & (long > 0), torch.maximum(least, text), least)
    return torch.where(_told(content, Content.HAS_RATIO) > 0, width * torch.exp(-ratio), high)


def _told(content: Tensor, what: Content) -> Tensor:
    """B x N x 1."""
    return content[..., what : what + 1]
