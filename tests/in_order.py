"""Clips of a folder in the order in which shards give them, so that the two can be compared."""

from tpdiff.data import ClipDataset


class InOrderOf(ClipDataset):
    """The clips of a folder in the order in which shards give them."""

    def __init__(self, config, other):
        data = config.data
        super().__init__(
            data.path, frames=data.frames, height=data.height, width=data.width, starts=data.starts, split=data.split
        )
        self.other = other

    def told(self, index):
        wanted = self.other[index]
        number = next(n for n, video in enumerate(self.videos) if str(video.entry.path).endswith(wanted["path"]))
        entry, start = self.videos[number].entry, wanted["start"]
        return {"caption": entry.caption, "index": index, "path": str(entry.path), "start": start, "number": number}
