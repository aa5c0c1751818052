"""The list of what is in a portable file, as an SPDX document in JSON. The bytes follow from the file alone.

Format: SPDX 2.3, https://spdx.github.io/spdx-spec/v2.3/. Knows no part of the file by name.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from shimmy import __version__
from tools.packages.archives import release_time_s
from tools.portable.papers.components import Component

_DOCUMENT, _FILE, _SHIMMY = "SPDXRef-DOCUMENT", "SPDXRef-File", "SPDXRef-Shimmy"


def document(program: Path, components: Sequence[Component], texts: Mapping[str, str] | None = None) -> str:
    """The document for a file that holds Shimmy and these components; `texts` are those of licences that SPDX does not
    know, by their names (`LicenseRef-…`)."""
    digest = hashlib.sha256(program.read_bytes()).hexdigest()
    date = datetime.fromtimestamp(release_time_s(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    content: dict[str, Any] = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": program.name,
        "documentNamespace": f"https://spdx.org/spdxdocs/{program.name}-{digest}",
        "creationInfo": {"created": date, "creators": [f"Tool: shimmy-build-{__version__}"]},
        "documentDescribes": [_FILE],
        "packages": [
            {
                **_package(_FILE, program.name, __version__, _all_licenses(components)),
                "packageFileName": program.name,
                "checksums": [{"algorithm": "SHA256", "checksumValue": digest}],
                "primaryPackagePurpose": "APPLICATION",
                "builtDate": date,
            },
            _package(_SHIMMY, "Shimmy", __version__, "MIT"),
            *(_component(component) for component in components),
        ],
        "relationships": [
            _relationship(_DOCUMENT, "DESCRIBES", _FILE),
            _relationship(_FILE, "CONTAINS", _SHIMMY),
            *_relationships_of(components),
        ],
    }
    if texts:
        content["hasExtractedLicensingInfos"] = [
            {"licenseId": name, "extractedText": text} for name, text in texts.items()
        ]
    return json.dumps(content, indent=1) + "\n"


def _component(component: Component) -> dict[str, Any]:
    package = _package(_id_of(component), component.name, component.version, component.license)
    reference = {"referenceCategory": "PACKAGE-MANAGER", "referenceType": "purl", "referenceLocator": component.purl}
    package["externalRefs"] = [reference]
    if component.sha256:
        package["packageFileName"] = component.archive
        package["checksums"] = [{"algorithm": "SHA256", "checksumValue": component.sha256}]
    return package


def _package(identifier: str, name: str, version: str, license_expression: str) -> dict[str, Any]:
    package = {
        "SPDXID": identifier,
        "name": name,
        "versionInfo": version,
        "downloadLocation": "NOASSERTION",
        "filesAnalyzed": False,
        "licenseConcluded": license_expression,
        "licenseDeclared": license_expression,
        "copyrightText": "NOASSERTION",
    }
    return {key: value for key, value in package.items() if value != ""}


def _relationships_of(components: Sequence[Component]) -> list[dict[str, str]]:
    by_name = {component.name: component for component in components if not component.part_of}
    return [
        _relationship(_id_of(by_name[component.part_of]), "STATIC_LINK", _id_of(component))
        if component.part_of
        else _relationship(_FILE, "CONTAINS", _id_of(component))
        for component in components
    ]


def _relationship(subject: str, kind: str, related: str) -> dict[str, str]:
    return {"spdxElementId": subject, "relationshipType": kind, "relatedSpdxElement": related}


def _id_of(component: Component) -> str:
    """Letters, digits, dots and hyphens alone are allowed; the name alone may stand for more than one."""
    words = [component.part_of, component.name, component.version]
    return "SPDXRef-" + re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(word for word in words if word).replace("+", "p"))


def _all_licenses(components: Sequence[Component]) -> str:
    """The expression for the whole: all of them apply."""
    expressions = sorted({component.license for component in components} | {"MIT"})
    return " AND ".join(f"({text})" if " " in text else text for text in expressions)
