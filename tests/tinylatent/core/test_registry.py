"""Registries hold what is installed under a group, in alphabetical order, loaded when it is asked for."""

import importlib

import pytest

from tinylatent.core.registry import PluginWarning, Registry


@pytest.fixture
def install(tmp_path, monkeypatch):
    """install(package, **entries) puts a package that registers these entries, all of the group "things", on the path.

    Names in one package may differ from those they load: `b="telescope:Lens"`.
    """

    def package(name, **entries):
        info = tmp_path / name / f"{name}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        points = "".join(f"{entry} = {value}\n" for entry, value in entries.items())
        (info / "entry_points.txt").write_text(f"[things]\n{points}")
        monkeypatch.syspath_prepend(str(tmp_path))
        monkeypatch.syspath_prepend(str(tmp_path / name))
        importlib.invalidate_caches()
        return Registry("things", "thing")

    return package


def test_entries_are_loaded_by_name_and_listed_in_order(install):
    things = install("one", pi="math:pi", tau="math:tau", e="math:e")
    assert list(things) == ["e", "pi", "tau"]
    assert len(things) == 3
    assert (things["pi"], things.get("phi")) == (importlib.import_module("math").pi, None)
    assert "tau" in things
    with pytest.raises(KeyError):
        things["phi"]


def test_entries_of_all_packages_are_found(install):
    install("zebra", b="math:e")
    things = install("ant", c="math:pi", a="math:tau")
    assert list(things) == ["a", "b", "c"]


def test_a_name_that_two_packages_register_is_refused_alone(install):
    install("one", pi="math:pi", e="math:e")
    things = install("two", pi="math:tau")
    said = r"two packages register a thing 'pi': (one and two|two and one); uninstall one, or rename its entry"
    assert [*things] == ["e", "pi"]
    with pytest.raises(ValueError, match=said):
        things["pi"]
    with pytest.warns(PluginWarning, match="left out: " + said):
        assert [*things.loaded()] == ["e"]


def test_the_same_entry_found_twice_is_one(install):
    """As where a checkout is installed and stands on the path as well."""
    install("one", pi="math:pi")
    assert list(install("copy", pi="math:pi")) == ["pi"]


def test_what_cannot_be_loaded_is_an_error_only_for_who_asks_for_it(install):
    things = install("one", pi="math:pi", broken="no_such_module:X")
    assert things["pi"] == pytest.approx(3.14159, abs=1e-5)
    said = r"'broken' of one cannot be loaded from no_such_module:X \(ModuleNotFoundError: .*\): repair or uninstall it"
    with pytest.raises(ValueError, match=said):
        things["broken"]
    with pytest.raises(ValueError, match=said):
        things.named("broken")
    with pytest.warns(PluginWarning, match="left out: the thing " + said):
        assert [*things.loaded()] == ["pi"]


def test_one_warning_tells_of_all_that_a_package_has_broken(install):
    install("one", pi="math:pi", bad="nowhere:X", worse="nowhere:Y", worst="math:nonsense")
    things = install("two", alone="nowhere:Z", e="math:e")
    with pytest.warns(PluginWarning) as given:
        assert [*things.loaded()] == ["e", "pi"]
    said = {each.message.package: str(each.message) for each in given}
    assert len(given) == 2
    assert said["one"].startswith("left out: the thing 'bad' of one cannot be loaded from nowhere:X ")
    assert said["one"].endswith("; so are 'worse', 'worst'")
    assert said["two"].startswith("left out: the thing 'alone' of two cannot be loaded")
    assert "; so" not in said["two"]


def test_an_entry_of_another_kind_is_refused(install):
    install("one", pi="math:pi", floor="math:floor")
    things = Registry("things", "thing", expects="a number", fits=lambda found: isinstance(found, float))
    assert things["pi"] == pytest.approx(3.14159, abs=1e-5)
    with pytest.raises(ValueError, match="the thing 'floor' of one, math:floor, is not a number: repair or uninstall"):
        things.named("floor")


def test_what_a_module_raises_when_it_is_imported_is_told(install, tmp_path):
    (tmp_path / "shaky.py").write_text("raise RuntimeError('no display')")
    things = install("one", shaky="shaky:Thing")
    with pytest.raises(ValueError, match=r"of one cannot be loaded from shaky:Thing \(RuntimeError: no display\)"):
        things["shaky"]


def test_unknown_names_are_answered_with_the_known_ones(install):
    things = install("one", pi="math:pi", e="math:e")
    assert things.named("pi") == things["pi"]
    with pytest.raises(ValueError, match="unknown thing 'phi': expected one of e, pi"):
        things.named("phi")


def test_entries_are_found_without_loading_them(install):
    things = install("one", broken="no_such_module:X")
    assert [*things] == ["broken"]
    assert "broken" in things


def test_an_entry_must_have_the_name_of_what_it_loads_where_that_has_one(install, tmp_path):
    """A run is stored under the name of its method and found by the name of the entry."""
    (tmp_path / "lens.py").write_text("class Lens:\n    name = 'lens'\n")
    install("one", lens="lens:Lens", glass="lens:Lens", pi="math:pi")
    things = Registry("things", "thing", named=True)
    assert things["lens"].name == "lens"
    with pytest.raises(ValueError, match=r"the thing 'glass' of one is named 'lens'.*: give both one name"):
        things["glass"]
    with pytest.raises(ValueError, match=r"the thing 'pi' of one is named None.*: give both one name"):
        things["pi"]
    assert Registry("things", "thing")["glass"].name == "lens"


def test_registries_of_groups_nobody_registers_in_are_empty():
    assert dict(Registry("tinylatent.nothing", "nothing")) == {}
