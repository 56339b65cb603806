"""Captions and splits: every way to write them, and every way to get them wrong."""

import json
import os

import pytest

from tpdiff.data import BadFile, DataError, FolderScan, check_share, scan
from tpdiff.data.folder import require_captions


@pytest.fixture
def folder(tmp_path):
    """Files are only listed here, so any bytes will do."""
    for name in ("b.mp4", "a.MOV", "sub/c.webm", ".hidden.mp4", "notes.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    return tmp_path


def write_jsonl(folder, *rows):
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    (folder / "metadata.jsonl").write_text("\n".join(lines))


def test_captions_beside_the_videos(folder):
    (folder / "b.txt").write_text("  a boat on a lake\n")
    (folder / "sub/c.txt").write_text("\ufeffein Käfer", encoding="utf-8")
    (folder / "a.txt").write_text("  \n")
    found = scan(folder)
    assert [entry.path.name for entry in found.entries] == ["a.MOV", "b.mp4", "c.webm"]
    assert [entry.caption for entry in found.entries] == [None, "a boat on a lake", "ein Käfer"]
    assert found.skipped == () and found.splits == ()


def test_a_caption_that_is_not_text(folder):
    (folder / "b.txt").write_bytes(b"caf\xe9")
    found = scan(folder)
    assert found.skipped == (BadFile(folder / "b.mp4", "its caption b.txt is not UTF-8 text"),)


def test_names_and_captions_that_no_file_can_hold_are_set_aside(folder):
    """As old archives have them, and captions that were cut within a character of two units."""
    os.rename(folder / "b.mp4", os.fsencode(folder) + b"/caf\xe9.mp4")
    (folder / "a.txt").write_text("a kite")
    (folder / "sub/c.txt").write_text("a boat")
    found = scan(folder)
    assert [entry.path.name for entry in found.entries] == ["a.MOV", "c.webm"]
    assert found.skipped == (BadFile(folder / r"caf\udce9.mp4", "its name is not UTF-8 text (surrogates not allowed)"),)
    write_jsonl(folder, '{"file_name": "a.MOV", "caption": "a kite \\ud83d"}', {"file_name": "sub/c.webm", "text": "x"})
    found = scan(folder)
    assert [entry.path.name for entry in found.entries] == ["c.webm"]
    assert found.skipped == (BadFile(folder / "a.MOV", "its caption is not UTF-8 text (surrogates not allowed)"),)
    assert found.unlisted == (folder / r"caf\udce9.mp4",)


def test_subfolders_name_the_split(tmp_path):
    for name in ("train/a.mp4", "test/b.mp4", "other/c.mp4"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    found = scan(tmp_path)
    assert {entry.path.name: entry.split for entry in found.entries} == {
        "a.mp4": "train",
        "b.mp4": "test",
        "c.mp4": None,
    }
    assert [entry.path.name for entry in scan(tmp_path, "test").entries] == ["b.mp4"]


def test_jsonl(folder):
    write_jsonl(
        folder,
        {"file_name": "sub/c.webm", "text": "a cat", "split": "train", "rating": 4},
        "",
        {"file_name": "b.mp4", "caption": "a dog", "text": "unused", "split": "test"},
        {"file_name": "gone.mp4", "caption": "a ghost"},
    )
    found = scan(folder)
    assert [(e.path.name, e.caption, e.split, e.extra) for e in found.entries] == [
        ("b.mp4", "a dog", "test", {}),
        ("c.webm", "a cat", "train", {"rating": 4}),
    ]
    assert found.skipped == (BadFile(folder / "gone.mp4", "listed in metadata.jsonl, line 4, but no such file"),)
    assert found.unlisted == (folder / "a.MOV",)
    with pytest.raises(DataError, match=r"split 'val' is not in .*known splits: test, train"):
        scan(folder, "val")


def test_files_set_aside_count_against_their_own_split(folder):
    write_jsonl(
        folder,
        {"file_name": "b.mp4", "split": "train"},
        {"file_name": "gone.mp4", "split": "test"},
        {"file_name": "lost.mp4"},
    )
    assert [item.path.name for item in scan(folder).skipped] == ["gone.mp4", "lost.mp4"]
    check_share(scan(folder, "train"), 0.0)
    with pytest.raises(DataError, match=r"1 of 1 videos cannot be used(.*\n)+.*gone\.mp4: listed in .*, line 2"):
        check_share(scan(folder, "test"), 0.5)


def test_captions_set_aside_count_against_their_own_split(tmp_path):
    for name in ("train/a.mp4", "test/b.mp4", "test/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"\xe9")
    assert [item.path.name for item in scan(tmp_path, "test").skipped] == ["b.mp4"]
    assert scan(tmp_path, "train").skipped == ()


def test_line_ends_inside_captions(folder):
    (folder / "metadata.jsonl").write_text('{"file_name": "b.mp4", "caption": "one\u2028two"}\r\n', newline="")
    assert scan(folder).entries[0].caption == "one\u2028two"
    (folder / "metadata.jsonl").unlink()
    (folder / "metadata.csv").write_text('file_name,text\r\nb.mp4,"one\r\ntwo"\r\n', newline="")
    assert scan(folder).entries[0].caption == "one\ntwo"


def test_csv(folder):
    (folder / "metadata.csv").write_text('file_name,text,split,source\nb.mp4,"a dog, wet",train,web\n')
    (entry,) = scan(folder).entries
    assert (entry.caption, entry.split, entry.extra) == ("a dog, wet", "train", {"source": "web"})


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"file_name": "b.mp4", ', r"metadata\.jsonl, line 2: not JSON"),
        ('["b.mp4"]', r"line 2: not a JSON object"),
        ('{"caption": "a dog"}', r"line 2: no file_name"),
        ('{"file_name": "b.mp4", "caption": 3}', r"line 2: caption must be text, got 3"),
        ('{"file_name": "b.mp4", "split": "test"}', r"line 2: 'b.mp4' is of split 'test', in line 1 of None; what is"),
        ('{"file_name": "../b.mp4", "caption": "x"}', r"line 2: file_name '../b.mp4' leads out of the folder"),
        ('{"file_name": "/b.mp4", "caption": "x"}', r"line 2: file_name '/b.mp4' leads out of the folder"),
    ],
)
def test_malformed_lines_are_named(folder, line, message):
    write_jsonl(folder, {"file_name": "b.mp4", "caption": "x"}, line)
    with pytest.raises(DataError, match=message):
        scan(folder)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,text\nb.mp4,x\n", r"metadata\.csv, line 1: no column file_name among \['name', 'text'\]"),
        ("file_name,text\nb.mp4\n", r"metadata\.csv, line 2: not the 2 columns"),
        ("file_name,text\nb.mp4,x\na.MOV,x,y\n", r"metadata\.csv, line 3: not the 2 columns"),
        ("file_name,text\n", r"metadata\.csv lists no videos"),
        (
            'file_name,text\nb.mp4,"a dog\na.MOV,"a cat"\n',
            r"metadata\.csv, line 3: not CSV .*; is a quote",
        ),
        ('file_name,text\nb.mp4,"a dog\n' + "a.MOV,a cat\n" * 20000, r"not CSV \(field larger than field limit"),
    ],
)
def test_malformed_tables(folder, text, message):
    (folder / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        scan(folder)


def test_both_kinds_of_metadata(folder):
    write_jsonl(folder, {"file_name": "b.mp4"})
    (folder / "metadata.csv").write_text("file_name\nb.mp4\n")
    with pytest.raises(DataError, match=r"holds both metadata.jsonl and metadata.csv; keep one"):
        scan(folder)


def test_missing_empty_and_unsplit_folders(tmp_path, folder):
    with pytest.raises(DataError, match=r"no such folder: .*nowhere"):
        scan(tmp_path / "nowhere")
    with pytest.raises(DataError, match="is a file, not a folder"):
        scan(folder / "b.mp4")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no video files \(\.mp4, \.mov, .*\) in .*empty"):
        scan(tmp_path / "empty")
    with pytest.raises(DataError, match="known splits: none"):
        scan(folder, "train")


def test_links_to_folders_are_followed(tmp_path):
    for name in ("set/b/2.mp4", "set/a/1.mp4", "disk/3.mp4", "disk/deep/4.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    folder = tmp_path / "set"
    before = scan(folder)
    assert [entry.path for entry in before.entries] == [folder / "a/1.mp4", folder / "b/2.mp4"]
    (folder / "train").symlink_to(tmp_path / "disk")
    found = scan(folder)
    assert found.entries[:2] == before.entries
    assert [entry.path for entry in found.entries[2:]] == [folder / "train/3.mp4", folder / "train/deep/4.mp4"]
    assert [entry.path.name for entry in scan(folder, "train").entries] == ["3.mp4", "4.mp4"]
    (tmp_path / "all").symlink_to(folder)
    assert len(scan(tmp_path / "all").entries) == 4


def test_links_that_go_round_end(tmp_path):
    for name in ("set/a/1.mp4", "set/b/2.mp4"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(b"x")
    folder = tmp_path / "set"
    (folder / "a" / "up").symlink_to(folder)
    (folder / "b" / "self").symlink_to(folder / "b")
    (folder / "b" / "nothing").symlink_to(folder / "b" / "nothing")
    assert [entry.path.name for entry in scan(folder).entries] == ["1.mp4", "2.mp4"]
    (folder / "b" / "a").symlink_to(folder / "a")  # no folder around it
    assert [str(entry.path.relative_to(folder)) for entry in scan(folder).entries] == [
        "a/1.mp4",
        "b/2.mp4",
        "b/a/1.mp4",
    ]


def test_files_of_other_kinds_are_counted(folder):
    for name in ("b.txt", "alone.txt", "sub/one.GIF", "sub/two.gif", "README", ".hidden.gif", "still.png"):
        (folder / name).write_bytes(b"x")
    assert list(scan(folder).others.items()) == [(".gif", 2), ("no suffix", 1), (".txt", 1), (".md", 1), (".png", 1)]
    assert scan(folder, pictures=True).others == {".gif": 2, "no suffix": 1, ".txt": 1, ".md": 1}
    write_jsonl(folder, {"file_name": "b.mp4", "split": "train"})
    assert scan(folder, "train").others[".txt"] == 2  # captions are in the metadata


def test_a_folder_of_other_kinds_says_what_it_holds(tmp_path):
    for name in ("a.gif", "b.gif", "c.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"no video files \(\.mp4, .*\) in .*; it holds \.gif \(2\), \.txt \(1\)$"):
        scan(tmp_path)


@pytest.fixture
def splits(tmp_path):
    """The layout of Hugging Face: each split has metadata of its own."""
    for name in ("train/a.mp4", "train/deep/b.mp4", "train/c.mp4", "test/a.mp4", "val/d.mp4"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    write_jsonl(
        tmp_path / "train",
        {"file_name": "deep/b.mp4", "text": "two"},
        {"file_name": "a.mp4", "caption": "one", "split": "train", "rating": 1},
        {"file_name": "gone.mp4", "caption": "a ghost"},
    )
    (tmp_path / "test" / "metadata.csv").write_text("file_name,text\na.mp4,three\n")
    (tmp_path / "val" / "d.txt").write_text("four")
    return tmp_path


def test_metadata_of_each_split(splits):
    found = scan(splits)
    assert [(str(e.path.relative_to(splits)), e.caption, e.split, e.extra) for e in found.entries] == [
        ("test/a.mp4", "three", "test", {}),
        ("train/a.mp4", "one", "train", {"rating": 1}),
        ("train/deep/b.mp4", "two", "train", {}),
        ("val/d.mp4", "four", "val", {}),
    ]
    reason = "listed in train/metadata.jsonl, line 3, but no such file"
    assert found.skipped == (BadFile(splits / "train" / "gone.mp4", reason, "train"),)
    assert found.unlisted == (splits / "train" / "c.mp4",) and found.others == {}
    assert [entry.caption for entry in scan(splits, "train").entries] == ["one", "two"]


def test_metadata_of_the_whole_folder_go_before(splits):
    write_jsonl(splits, {"file_name": "train/c.mp4", "text": "five", "split": "test"})
    assert [(entry.caption, entry.split) for entry in scan(splits).entries] == [("five", "test")]
    assert scan(splits).others == {".csv": 1, ".jsonl": 1, ".txt": 1}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            {"file_name": "a.mp4", "split": "test"},
            r"train/metadata\.jsonl, line 1: split 'test' .* of 'train'; leave it",
        ),
        ({"file_name": "../test/a.mp4"}, r"line 1: file_name '\.\./test/a\.mp4' leads out of the folder"),
        ("", r"train/metadata\.jsonl lists no videos"),
    ],
)
def test_metadata_of_a_split_keep_to_it(splits, row, message):
    write_jsonl(splits / "train", row)
    with pytest.raises(DataError, match=message):
        scan(splits)


def test_missing_captions_say_what_to_write(folder):
    with pytest.raises(DataError, match=r"3 of 3 videos in .* have no caption: a.MOV, b.mp4, .*c\.webm") as caught:
        require_captions(scan(folder).entries, folder)
    assert "(a.txt)" in str(caught.value) and '{"file_name": "a.MOV", "caption": "..."}' in str(caught.value)


def test_share_of_bad_files(folder):
    entries, bad = scan(folder).entries, tuple(BadFile(folder / f"{n}.mp4", f"reason {n}") for n in range(7))
    check_share(FolderScan(entries, bad[:1]), 0.25)
    check_share(FolderScan(entries, ()), 0.0)
    with pytest.raises(DataError, match=r"1 of 4 videos cannot be used, more than max_bad_share 0\.2") as caught:
        check_share(FolderScan(entries, bad[:1]), 0.2)
    assert "0.mp4: reason 0" in str(caught.value)
    with pytest.raises(DataError, match=r"7 of 10 .*\n.*reason 0(.*\n)*.*and 2 more"):
        check_share(FolderScan(entries, bad), 0.5)
    with pytest.raises(DataError, match="7 of 7"):
        check_share(FolderScan((), bad), 1.0)
    with pytest.raises(ValueError, match=r"max_bad_share 1\.5 .* nearest: 1"):
        check_share(FolderScan(entries), 1.5)
