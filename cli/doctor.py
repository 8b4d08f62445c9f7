"""`hmrcompress doctor`."""

from __future__ import annotations

from hmrcompress.errors import GateFailed
from hmrcompress_cli.common import DebugOption, JsonOption, OverwriteOption, Printer, QuietOption, write_record


def doctor(
    json: JsonOption = None,
    overwrite: OverwriteOption = False,
    quiet: QuietOption = False,
    debug: DebugOption = False,
) -> None:
    """Say what there is to work with: packages, devices, what is missing for what, and whether the shipped network
    gives its golden output.

    Exit code 3 where something is wrong: a package that everything needs, or the golden output. Extras that are missing
    are told.
    """
    from hmrcompress.api.doctor import EXTRAS, examine

    found = examine()
    write_record(json, "doctor", {"doctor": found.to_json()})
    printer = Printer(quiet)
    told, cpu, golden = found.environment, found.devices["cpu"], found.golden
    printer.say(f"hmrcompress {told['versions']['hmrcompress']}, Python {told['versions']['python']}")
    rows = [
        (each.name, each.wanted or "any", each.version, each.extra or "everything", "" if each.fits else "MISSING")
        for each in found.packages
    ]
    printer.table("", ("package", "wanted", "installed", "for", ""), rows)
    printer.say(
        f"CPU: {told['cpu']}, {', '.join(cpu['features'])}; {cpu['threads']} threads, {cpu['fast_dtype']} is fast"
    )
    for number, each in enumerate(found.devices["cuda"]):
        printer.say(f"cuda:{number}: {each['name']}, {each['memory_bytes'] / 2**30:.0f} GiB")
    if not found.devices["cuda"]:
        printer.say("CUDA: no device")
    printer.say(f"onnxruntime: {', '.join(found.devices['onnxruntime'])}")
    kept = found.cache
    where = "" if kept["writable"] else ", which cannot be written to"
    printer.say(f"cache: {kept['folder']}{where}, {kept['bytes'] / 1e6:.0f} MB in {kept['files']} files")
    for name, packages in found.missing.items():
        names = ", ".join(each.name for each in packages)
        printer.say(f"missing for {EXTRAS[name]}: {names}. Try: pip install 'hmrcompress[{name}]'")
    if "error" not in golden:
        verdict = "gives" if golden["equal"] else "DOES NOT give"
        printer.say(
            f"the shipped network {verdict} its golden output: {golden['difference']:.1e} off, "
            f"{golden['bound']:.1e} allowed"
        )
    if found.faults:
        raise GateFailed("; ".join(found.faults))
    printer.say("all is well")
