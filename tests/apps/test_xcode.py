"""The Xcode project is right as far as that can be seen without Xcode: what it names is there, and what is there is in it."""

from __future__ import annotations

import json
import plistlib
import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pbxproj
import pytest
from PIL import Image

from mobileclip import __version__
from mobileclip.benchmark.devices.app import APP

IOS = Path(__file__).parents[2] / "ios_app"
SOURCES = IOS / "MobileCLIP"
PROJECT = IOS / "MobileCLIP.xcodeproj/project.pbxproj"
PRODUCTS = {"MobileCLIPCore", "MobileCLIPAppCore", "MobileCLIPCoreML"}


@pytest.fixture(scope="module")
def objects():
    return pbxproj.XcodeProject.load(str(PROJECT)).objects


def of(objects, kind):
    return list(objects.get_objects_in_section(kind))


def target(objects):
    (found,) = of(objects, "PBXNativeTarget")
    return found


def paths(objects):
    """Where each file of the project lies, by its id."""
    found = {}

    def walk(group, folder):
        for key in group.children:
            child = objects[key]
            assert child is not None, f"{key} in {group.get_id()} is nothing"
            place = folder / child.path if "path" in child else folder
            if child.isa == "PBXGroup":
                walk(child, place)
            else:
                found[child.get_id()] = place

    (project,) = of(objects, "PBXProject")
    walk(objects[project.mainGroup], IOS)
    return found


def phase(objects, kind):
    """The ids of the files of a build phase of the target."""
    (found,) = [objects[key] for key in target(objects).buildPhases if objects[key].isa == f"PBX{kind}BuildPhase"]
    return [objects[key] for key in found.files]


def settings(objects, name):
    """The settings of a configuration, the target's over the project's."""
    (project,) = of(objects, "PBXProject")
    merged = {}
    for owner in (project, target(objects)):
        (configuration,) = [objects[key] for key in objects[owner.buildConfigurationList].buildConfigurations if objects[key].name == name]
        merged |= {key: configuration.buildSettings[key] for key in configuration.buildSettings.get_keys()}
    return merged


def xcconfig():
    lines = [line.split("//")[0].strip() for line in (IOS / "Config/App.xcconfig").read_text().splitlines()]
    return dict(line.split(" = ") for line in lines if " = " in line)


def test_every_reference_is_something(objects):
    """Each id that stands anywhere in the project is that of an object."""
    text = PROJECT.read_text()
    defined = {one.get_id() for one in objects.get_objects_in_section(*objects.get_sections())}
    used = set(re.findall(r"\b[0-9A-F]{24}\b", text))
    assert used == defined
    assert len(re.findall(r"^\t\t[0-9A-F]{24}\b[^=\n]*= \{", text, re.MULTILINE)) == len(defined), "an object stands twice"


def test_every_file_of_the_project_exists(objects):
    for key, place in paths(objects).items():
        assert place.exists() or objects[key].sourceTree == "BUILT_PRODUCTS_DIR", place
    assert not of(objects, "PBXFileSystemSynchronizedRootGroup"), "such a folder would make the checks here mean nothing"


def test_every_swift_file_is_compiled_once(objects):
    compiled = [paths(objects)[one.fileRef] for one in phase(objects, "Sources")]
    assert sorted(compiled) == sorted(SOURCES.rglob("*.swift"))


def test_every_other_file_of_the_app_is_used(objects):
    copied = {paths(objects)[one.fileRef] for one in phase(objects, "Resources")}
    assert copied == {SOURCES / "Assets.xcassets", SOURCES / "PrivacyInfo.xcprivacy"}
    others = {file for file in SOURCES.rglob("*") if file.is_file() and file.suffix != ".swift"}
    assert {file for file in others if not any(file == one or one in file.parents for one in copied)} == {SOURCES / "Info.plist"}


def test_the_package_is_linked(objects):
    (package,) = of(objects, "XCLocalSwiftPackageReference")
    (project,) = of(objects, "PBXProject")
    assert list(project.packageReferences) == [package.get_id()]
    manifest = (IOS / package.relativePath / "Package.swift").read_text()
    assert set(re.findall(r'\.library\(name: "(\w+)"', manifest)) == PRODUCTS
    asked = [objects[key] for key in target(objects).packageProductDependencies]
    assert {one.productName for one in asked} == PRODUCTS
    assert all(one.package == package.get_id() for one in asked)
    assert {objects[one.productRef].productName for one in phase(objects, "Frameworks")} == PRODUCTS


@pytest.mark.parametrize("name", ["Debug", "Release"])
def test_the_settings_are_those_of_the_package_and_the_toolkit(objects, name):
    found = settings(objects, name)
    manifest = (IOS / "MobileCLIPKit/Package.swift").read_text()
    assert found["IPHONEOS_DEPLOYMENT_TARGET"] == "17.0"
    assert ".iOS(.v17)" in manifest
    assert found["SWIFT_VERSION"] == "6.0"
    assert "swift-tools-version: 6.0" in manifest
    assert found["GENERATE_INFOPLIST_FILE"] == "NO"
    assert (IOS / found["INFOPLIST_FILE"]).is_file()
    assert (SOURCES / f"Assets.xcassets/{found['ASSETCATALOG_COMPILER_APPICON_NAME']}.appiconset").is_dir()
    assert (SOURCES / f"Assets.xcassets/{found['ASSETCATALOG_COMPILER_GLOBAL_ACCENT_COLOR_NAME']}.colorset").is_dir()
    assert "DEVELOPMENT_TEAM" not in found
    assert "PRODUCT_BUNDLE_IDENTIFIER" not in found, "it would win over the one in App.xcconfig"


def test_the_app_has_the_name_that_the_toolkit_looks_for(objects):
    versions = {"MARKETING_VERSION": __version__, "CURRENT_PROJECT_VERSION": "1"}
    assert xcconfig() == {"MOBILECLIP_APP_ID": APP, "PRODUCT_BUNDLE_IDENTIFIER": "$(MOBILECLIP_APP_ID)", **versions}
    config = {objects[key].baseConfigurationReference for key in objects[target(objects).buildConfigurationList].buildConfigurations}
    assert {paths(objects)[key] for key in config} == {IOS / "Config/App.xcconfig"}
    assert "Config/Team.xcconfig" in (IOS / ".gitignore").read_text().splitlines()
    assert '#include? "Team.xcconfig"' in (IOS / "Config/App.xcconfig").read_text()


def test_the_scheme_builds_the_target(objects):
    scheme = ET.parse(IOS / "MobileCLIP.xcodeproj/xcshareddata/xcschemes/MobileCLIP.xcscheme")
    references = list(scheme.iter("BuildableReference"))
    assert {one.get("BlueprintIdentifier") for one in references} == {target(objects).get_id()}
    assert {one.get("ReferencedContainer") for one in references} == {"container:MobileCLIP.xcodeproj"}
    launch = scheme.find("LaunchAction")
    assert launch is not None
    assert launch.get("buildConfiguration") == "Release", "a benchmark of code that is not optimised means nothing"


def test_info_plist_has_what_the_system_asks_for():
    info = plistlib.loads((SOURCES / "Info.plist").read_bytes())
    for key in ("NSCameraUsageDescription", "NSPhotoLibraryUsageDescription"):
        assert len(info[key]) > 40, key
    # the bench copies files in and out; a user puts bundles there
    assert info["UIFileSharingEnabled"] is True
    assert info["LSSupportsOpeningDocumentsInPlace"] is True
    assert info["CFBundleIdentifier"] == "$(PRODUCT_BUNDLE_IDENTIFIER)"
    assert info["CFBundleShortVersionString"] == "$(MARKETING_VERSION)"
    assert info["UILaunchScreen"] == {}
    assert len(info["UISupportedInterfaceOrientations"]) == 3


def test_the_privacy_manifest_names_what_the_code_uses():
    manifest = plistlib.loads((SOURCES / "PrivacyInfo.xcprivacy").read_bytes())
    assert manifest["NSPrivacyTracking"] is False
    assert manifest["NSPrivacyTrackingDomains"] == manifest["NSPrivacyCollectedDataTypes"] == []
    kinds = manifest["NSPrivacyAccessedAPITypes"]
    declared = {one["NSPrivacyAccessedAPIType"].removeprefix("NSPrivacyAccessedAPICategory") for one in kinds}
    assert all(one["NSPrivacyAccessedAPITypeReasons"] for one in kinds)
    code = "\n".join(file.read_text() for file in IOS.rglob("*.swift") if "Tests" not in file.parts)
    words = {  # Apple, "Describing use of required reason API"
        "UserDefaults": r"UserDefaults\b",
        "DiskSpace": r"systemFreeSize|systemSize|volumeAvailableCapacity|volumeTotalCapacity",
        "FileTimestamp": r"creationDate\b(?!\")|modificationDate\]|contentModificationDateKey|creationDateKey|getattrlist|fstat\b",
        "SystemBootTime": r"systemUptime|mach_absolute_time",
        "ActiveKeyboards": r"activeInputModes",
    }
    assert {name for name, pattern in words.items() if re.search(pattern, code)} == declared


def test_the_asset_catalog_is_whole():
    catalog = SOURCES / "Assets.xcassets"
    for file in catalog.rglob("Contents.json"):
        for image in json.loads(file.read_text()).get("images", []):
            with Image.open(file.parent / image["filename"]) as icon:
                assert f"{icon.width}x{icon.height}" == image["size"]
                assert icon.mode == "RGB", "an app's icon has no transparency"
    folders = {folder for folder in catalog.rglob("*") if folder.is_dir()}
    assert all((folder / "Contents.json").is_file() for folder in folders)
