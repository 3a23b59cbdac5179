"""Tables as people's tools export them: every form is read, or its line is named."""

from __future__ import annotations

import unicodedata
from pathlib import Path, PureWindowsPath

import pytest

from fgzoo.data.folder import read_folder
from fgzoo.data.records import Listing
from fgzoo.data.tables import read_image_table
from fgzoo.errors import DataError
from tests.builders import save, write_lines

BIRDS = ("crow", "wren")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two folders of four pictures, named differently in each."""
    for target, bird in enumerate(BIRDS):
        for index in range(4):
            save(tmp_path / "photos" / bird / f"{bird}{index}.jpg", target, index)
    return tmp_path / "photos"


def rows(form: str = "{path},{label},{split}") -> list[str]:
    splits = ("train", "train", "val", "test")
    return [
        form.format(path=f"{b}/{b}{i}.jpg", name=f"{b}{i}.jpg", stem=f"{b}{i}", label=b, split=splits[i])
        for b in BIRDS
        for i in range(4)
    ]


def content(listing: Listing) -> tuple[object, ...]:
    return listing.class_names, *([(r.name, r.target) for r in part] for part in (listing.train, listing.val, listing.test))


@pytest.fixture
def expected(root: Path, tmp_path: Path) -> tuple[object, ...]:
    return content(read_folder(root, write_lines(tmp_path / "usual.csv", ["path,label,split", *rows()])))


FORMS = {
    "usual": ["path,label,split", *rows()],
    "semicolons": ["path;label;split", *rows("{path};{label};{split}")],
    "tabs": ["path\tlabel\tsplit", *rows("{path}\t{label}\t{split}")],
    "bars": ["path|label|split", *rows("{path}|{label}|{split}")],
    "spaces": rows("{path} {label} {split}"),
    "excel's first line": ["sep=;", "path;label;split", *rows("{path};{label};{split}")],
    "quotes": ['"path","label","split"', *rows('"{path}","{label}","{split}"')],
    "quotes after blanks": ['"path", "label", "split"', *rows('"{path}", "{label}", "{split}"')],
    "other columns": ["", "id,split,label,path,size", *rows("7,{split},{label},{path},big")],
    "other names": ["Class Name,Image_Path,Subset", *rows("{label},{path},{split}")],
    "names of a download": ["class id,filepaths,labels,data set", *rows("0,{path},{label},{split}")],
    "other names of splits": ["file,species,set", *(row.replace(",val", ",Valid").replace(",train", ",TRAIN") for row in rows())],
    "splits under a name of one's own": ["path,label,phase", *rows()],
    "no header": rows(),
    "no header, split first": rows("{split},{path},{label}"),
    "blank lines": ["path,label,split", "", *rows("{path},{label},{split}\n"), ",,", ""],
    "blanks": ["path , label , split", *rows(" {path} , {label}, {split}")],
    "empty columns": ["path,label,split,,", *rows("{path},{label},{split},,")],
    "windows paths": ["path,label,split", *[line.replace("/", "\\") for line in rows()]],
    "windows drive": ["path,label,split", *rows("C:\\Users\\me\\{path},{label},{split}")],
    "addresses": ["path,label,split", *rows("gs://bucket/birds/{path},{label},{split}")],
    "another machine": ["path,label,split", *rows("/home/me/birds/{path},{label},{split}")],
    "dots": ["path,label,split", *rows("./{path},{label},{split}")],
    "up and down": ["path,label,split", *rows("crow/../{path},{label},{split}")],
    "file names": ["filename,label,split", *rows("{name},{label},{split}")],
    "without suffix": ["id,breed,split", *rows("{stem},{label},{split}")],
    "other case": ["path,label,split", *[line.replace(".jpg", ".JPG") for line in rows()]],
    "repeated rows": ["path,label,split", *(line for line in rows() for _ in range(2))],
    "a column for each class": ["filename, crow, wren,split", *[f"{line},{split}" for line, split in zip(
        [f"crow/crow{i}.jpg,1,0" for i in range(4)] + [f"wren/wren{i}.jpg,0,1" for i in range(4)],
        ["train", "train", "val", "test"] * 2, strict=True)]],
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, root: Path, expected: tuple[object, ...], tmp_path: Path) -> None:
    assert content(read_folder(root, write_lines(tmp_path / "list.csv", FORMS[form]))) == expected


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_encodings(encoding: str, root: Path, expected: tuple[object, ...], tmp_path: Path) -> None:
    path = tmp_path / "list.csv"
    path.write_text("\r\n".join(FORMS["usual"]), encoding=encoding)
    assert content(read_folder(root, path)) == expected


def test_absolute_paths(root: Path, expected: tuple[object, ...], tmp_path: Path) -> None:
    lines = rows(f"{root}/{{path}},{{label}},{{split}}")
    assert content(read_folder(root, write_lines(tmp_path / "list.csv", ["path,label,split", *lines]))) == expected


def test_a_table_is_a_root(root: Path, expected: tuple[object, ...]) -> None:
    assert content(read_folder(write_lines(root / "list.csv", FORMS["usual"]))) == expected


@pytest.mark.parametrize("form", ["../photos/{path},{label},{split}", "{root}/{path},{label},{split}"])
def test_a_tables_images_may_lie_elsewhere(form: str, root: Path, expected: tuple[object, ...], tmp_path: Path) -> None:
    (tmp_path / "lists").mkdir()
    lines = rows(form.replace("{root}", str(root)))
    assert content(read_folder(write_lines(tmp_path / "lists" / "list.csv", lines))) == expected


def test_the_table_of_a_folder_without_class_folders_is_read(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for target in range(2):
            save(tmp_path / split / f"{split}{target}.jpg")
    lines = [f"{split}{target},{bird},{split}" for split in ("train", "test") for target, bird in enumerate(BIRDS)]
    write_lines(tmp_path / "labels.csv", ["id,breed,split", *lines])
    listing = read_folder(tmp_path)
    assert (listing.class_names, len(listing.train), len(listing.test)) == (BIRDS, 2, 2)
    assert listing.notes[0] == "There are no class folders; classes are those of labels.csv."


def test_several_tables_beside_images_without_classes_are_named(tmp_path: Path) -> None:
    for name in ("train/a.jpg", "test/b.jpg"):
        save(tmp_path / name)
    for name in ("labels.csv", "sample.csv"):
        (tmp_path / name).touch()
    with pytest.raises(DataError, match=r"the images in test, train have no class\. .* such as labels\.csv, sample\.csv there"):
        read_folder(tmp_path)


def test_a_table_beside_class_folders_is_left_out(root: Path) -> None:
    write_lines(root / "notes.csv", ["a,b", "1,2"])
    listing = read_folder(root)
    assert listing.class_names == BIRDS
    assert listing.notes == ("Files left out because they are no images that can be read: 1 .csv.",)


def test_paths_may_start_beside_the_table(root: Path, expected: tuple[object, ...], tmp_path: Path) -> None:
    lines = rows("photos/{path},{label},{split}")
    assert content(read_folder(root, write_lines(tmp_path / "list.csv", lines))) == expected


def test_without_a_split_everything_is_training_data(root: Path, tmp_path: Path) -> None:
    listing = read_folder(root, write_lines(tmp_path / "list.csv", ["path,label", *rows("{path},{label}")]))
    assert (len(listing.train), len(listing.val), len(listing.test)) == (8, 0, 0)


def test_what_was_understood_is_said(root: Path, tmp_path: Path) -> None:
    lines = ["species;filename", *rows("{label};C:\\birds\\{path}"), "crow;C:\\birds\\crow\\crow0.jpg"]
    assert read_image_table(write_lines(tmp_path / "list.csv", lines), root).notes == (
        "list.csv: images from column 'filename', classes from column 'species'.",
        f"Paths are read below {root}, without what stands before ({PureWindowsPath('C:/birds').as_posix()}).",
        "Rows left out because they repeat another one: 1.",
    )


@pytest.mark.parametrize(("listed", "stored"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_may_be_stored_otherwise(listed: str, stored: str, tmp_path: Path) -> None:
    for bird in ("\u00d6l", "\u00e9"):
        save(tmp_path / unicodedata.normalize(stored, bird) / "a.jpg")
    lines = [unicodedata.normalize(listed, f"{bird}/a.jpg,{bird}") for bird in ("\u00d6l", "\u00e9")]
    listing = read_folder(tmp_path, write_lines(tmp_path / "list.csv", lines))
    assert [record.name for record in listing.train] == ["\u00e9/a.jpg", "\u00d6l/a.jpg"]
    assert all(record.path is not None and record.path.is_file() for record in listing.train)


def test_accents_of_labels_are_one_class(root: Path, tmp_path: Path) -> None:
    labels = [unicodedata.normalize(form, "\u00d6l") for form in ("NFC", "NFD")]
    lines = [f"crow/crow0.jpg,{labels[0]}", f"crow/crow1.jpg,{labels[1]}", "wren/wren0.jpg,wren"]
    assert read_folder(root, write_lines(tmp_path / "list.csv", lines)).class_names == ("wren", "\u00d6l")


@pytest.mark.parametrize("label", ['"a, b"', '"the ""red"" one"', '"two\nlines"', "\u05e2\u05d5\u05e8\u05d1"])
def test_labels_of_any_text(label: str, root: Path, tmp_path: Path) -> None:
    lines = [f"crow/crow0.jpg,{label}", "wren/wren0.jpg,wren"]
    names = read_folder(root, write_lines(tmp_path / "list.csv", ["path,label", *lines])).class_names
    assert set(names) == {label.strip('"').replace('""', '"'), "wren"}


@pytest.mark.parametrize(
    ("header", "form", "sizes"),
    [
        ("path,label,is_valid", "{path},{label},{val}", (6, 2, 0)),
        ("path,label,is_test", "{path},{label},{test}", (6, 0, 2)),
        ("path,label,isVal,Is Test", "{path},{label},{val},{test}", (4, 2, 2)),
        ("path,label,is_train,is_val,is_test", "{path},{label},{train},{val},{test}", (4, 2, 2)),
        ("path,crow,wren,is_test", "{path},{crow},{wren},{test}", (6, 0, 2)),
        ("path,label,test", "{path},{label},{test}", (6, 0, 2)),
        ("path,label,Train,Validation,Test Set", "{path},{label},{train},{val},{test}", (4, 2, 2)),
        ("path,crow,wren,test", "{path},{crow},{wren},{test}", (6, 0, 2)),
    ],
)
@pytest.mark.parametrize("words", [("False", "True"), ("0", "1")])
def test_columns_that_mark_a_split_are_read(
    words: tuple[str, str], header: str, form: str, sizes: tuple[int, int, int], root: Path, tmp_path: Path
) -> None:
    lines = []
    for row in rows():
        path, label, split = row.split(",")
        marked = {name: words[split == name] for name in ("train", "val", "test")}
        lines.append(form.format(path=path, label=label, crow=int(label == "crow"), wren=int(label == "wren"), **marked))
    listing = read_folder(root, write_lines(tmp_path / "list.csv", [header, *lines]))
    assert (len(listing.train), len(listing.val), len(listing.test)) == sizes
    assert "splits from column" in listing.notes[0]


@pytest.mark.parametrize(
    ("header", "form", "unread"),
    [
        ("path,label,fold", "{path},{label},3", "'fold'"),
        ("path,label,set", "{path},{label},A", "'set'"),
        ("path,label,valid", "{path},{label},perhaps", "'valid'"),
        ("path,label,split,phase", "{path},{label},{split},train", "'phase'"),
        ("path,label,split,is_test", "{path},{label},{split},1", "'is_test'"),
        ("path,label,valid", "{path},{label},1", "'valid'"),
        ("path,label,category", "{path},{label},bird", "'category'"),
    ],
)
def test_columns_that_look_as_if_they_were_read_are_named(
    header: str, form: str, unread: str, root: Path, tmp_path: Path
) -> None:
    notes = read_folder(root, write_lines(tmp_path / "list.csv", [header, *rows(form)])).notes
    assert any(f"list.csv: not read: {unread};" in note for note in notes)


def test_words_for_splits_that_set_no_training_image_apart_say_other_things(root: Path, tmp_path: Path) -> None:
    listing = read_folder(root, write_lines(tmp_path / "list.csv", ["path,label,status", *rows("{path},{label},valid")]))
    assert (len(listing.train), len(listing.val), len(listing.test)) == (8, 0, 0)


def test_class_folders_called_as_splits_are_classes(tmp_path: Path) -> None:
    lines = [f"{name}/{i}.jpg,{name}" for name in ("train", "validate", "eval") for i in range(2)]
    for line in lines:
        save(tmp_path / line.partition(",")[0])
    assert len(read_folder(tmp_path, write_lines(tmp_path / "list.csv", ["path,label", *lines])).train) == 6


def test_names_beside_numbers_of_classes_are_read(root: Path, tmp_path: Path) -> None:
    lines = [f"{bird}/{bird}{i}.jpg,{number},{bird},bird" for number, bird in enumerate(BIRDS) for i in range(4)]
    listing = read_folder(root, write_lines(tmp_path / "list.csv", ["path,label,class_name,category", *lines]))
    assert listing.class_names == BIRDS
    assert listing.notes[0] == "list.csv: images from column 'path', classes from column 'class_name'."


def test_a_class_may_be_called_class(root: Path, tmp_path: Path) -> None:
    lines = ["crow/crow0.jpg,1,0,0", "wren/wren0.jpg,0,1,0", "wren/wren1.jpg,0,0,1"]
    assert read_folder(root, write_lines(tmp_path / "list.csv", ["filename,class,dog,emu", *lines])).class_names == (
        "class", "dog", "emu",
    )  # fmt: skip


def test_a_class_may_be_called_as_a_split_is(root: Path, tmp_path: Path) -> None:
    lines = ["crow/crow0.jpg,1,0,0", "wren/wren0.jpg,0,1,0", "wren/wren1.jpg,0,0,1"]
    listing = read_folder(root, write_lines(tmp_path / "list.csv", ["filename,train,bus,car", *lines]))
    assert (listing.class_names, len(listing.train)) == (("bus", "car", "train"), 3)


@pytest.mark.parametrize("form", ["{split}/{bird}{i}.jpg,{bird}", "data/{bird}/{split}/{i}.jpg,{bird}"])
def test_folders_that_all_images_lie_in_are_splits_where_no_column_says_them(form: str, tmp_path: Path) -> None:
    lines = [form.format(split=split, bird=bird, i=i) for split in ("train", "test") for bird in BIRDS for i in range(2)]
    for line in lines:
        save(tmp_path / line.partition(",")[0])
    listing = read_folder(tmp_path, write_lines(tmp_path / "list.csv", ["path,label", *lines]))
    assert {record.name for record in listing.test} == {line.partition(",")[0] for line in lines if "test" in line}
    assert "No column says the splits; they are those of the folders: test, train." in listing.notes
    save(tmp_path / "more" / "a.jpg")
    assert not read_folder(tmp_path, write_lines(tmp_path / "list.csv", ["path,label", *lines, "more/a.jpg,crow"])).test


@pytest.mark.parametrize(("one", "other"), [("Crow", "crow"), ("1", "1.0"), ("great crow", "Great_crow")])
def test_classes_whose_names_hardly_differ_are_told(one: str, other: str, root: Path, tmp_path: Path) -> None:
    lines = [f"crow/crow0.jpg,{one}", f"crow/crow1.jpg,{other}", "wren/wren0.jpg,wren"]
    listing = read_folder(root, write_lines(tmp_path / "list.csv", ["path,label", *lines]))
    assert len(listing.class_names) == 3
    assert listing.notes[-1].startswith("Classes of their own, though their names hardly differ: ")
    assert repr(one) in listing.notes[-1]


BAD = {
    "another label": ([*FORMS["usual"], "crow/crow1.jpg,wren,train"], "line 10: .* 'wren' here and of class 'crow' on line 3"),
    "another label, written otherwise": ([*FORMS["usual"], ".\\crow\\crow1.jpg,wren,train"], "line 10: .* on line 3"),
    "another split": ([*FORMS["usual"], "crow/crow1.jpg,crow,test"], r"line 10: .* in 'test' here and in 'train' on line 3"),
    "out of the root": ([*FORMS["usual"], "../secret.jpg,crow,train"], r"line 10: '\.\./secret\.jpg' lies outside"),
    "absolute": ([*FORMS["usual"], "/etc/passwd,crow,train"], "line 10: '/etc/passwd' lies outside of"),
    "a line break in quotes": (["path,label", 'a.jpg,"two', 'lines"', "b.jpg"], "line 4: expected 2 columns, found 1"),
    "unknown split": (["path,label,split", "crow/crow0.jpg,crow,A"], "line 2: unknown split 'A'; choose train, val or test"),
    "one unknown split": (["path,label,subset", "b.jpg,crow,train", "a.jpg,crow,training-a"], "line 3: unknown split 'training"),
    "an empty split": (["path,label,subset", "crow/crow0.jpg,crow,train", "a.jpg,crow,"], "line 3: unknown split ''"),
    "a split that is nan": (["path,label,set", "crow/crow0.jpg,crow,nan", "a.jpg,crow,test"], "line 2: unknown split 'nan'"),
    "neither true nor false": (["path,label,is_valid", "crow/crow0.jpg,crow,"], "line 2: '' does not say whether .* in val"),
    "in two splits": (["path,label,is_valid,is_test", "crow/crow0.jpg,crow,1,1"], "line 2: the image is in val and test; give"),
    "in no split": (["path,label,is_train", "crow/crow0.jpg,crow,False"], "line 2: the image is in no split; give a column"),
    "two columns of splits": (
        ["path,label,phase,mode", "crow/crow0.jpg,crow,train,test", "crow/crow1.jpg,crow,test,train"],
        "'phase' and 'mode' contradict",
    ),
    "a label that is nan": (["path,label", "crow/crow0.jpg,nan"], "line 2: the label is 'nan', as tools write an empty cell"),
    "no column of images": (["label,weight", "crow,1"], "line 1: no column of images among label, weight"),
    "two columns of one name": (["path,label,Label", "crow/crow0.jpg,a,b"], "line 1: two columns are called 'label'"),
    "no header and two columns more": (["crow/crow0.jpg,crow,7"], "line 1: 2 columns may be the class"),
    "no header and no image": (["crow0,crow"], "line 1: neither a header such as path,label,split"),
    "one column": (["path"], "line 1: one column only"),
    "no class marked": (["image,crow,wren", "crow/crow0.jpg,0,0"], "line 2: 0 classes are marked"),
    "a name that no file can have": ([*FORMS["usual"], f"crow/{'x' * 300}.jpg,crow,train"], "1 of 9 listed images are missing"),
    "nothing": ([""], "is empty"),
    "a header alone": (["path,label"], "lists no image"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_tables_are_named(case: str, root: Path, tmp_path: Path) -> None:
    lines, said = BAD[case]
    with pytest.raises(DataError, match=said):
        read_folder(root, write_lines(tmp_path / "list.csv", lines))


def test_one_file_name_in_two_folders_is_named(tmp_path: Path) -> None:
    for bird in BIRDS:
        save(tmp_path / bird / "a.jpg")
    with pytest.raises(DataError, match=r"'a\.jpg' may be .*crow/a\.jpg and .*wren/a\.jpg"):
        read_folder(tmp_path, write_lines(tmp_path / "list.csv", ["a.jpg,crow", "a.jpg,wren"]))


@pytest.mark.parametrize(("name", "data", "said"), [
    ("list.xlsx", b"PK\3\4", "is a workbook; save its sheet as CSV"),
    ("list.csv", b"a\0b,c\n", "is no text file"),
    ("list.csv", "path,label\na.jpg,Öl\n".encode("cp1252"), "line 2: not UTF-8 text"),
])  # fmt: skip
def test_files_that_are_no_tables_are_named(name: str, data: bytes, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=said):
        read_folder(tmp_path / name)


def test_missing_images_are_counted(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"1 of 9 listed images are missing: crow/gone\.jpg"):
        read_folder(root, write_lines(tmp_path / "list.csv", [*FORMS["usual"], "crow/gone.jpg,crow,train"]))
