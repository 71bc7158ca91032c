"""Texts meant to exhaust time, memory or the stack: refused, failing or answered. `bench.cel` measures how fast."""

from __future__ import annotations

FIFTY = f"[{', '.join(['1'] * 50)}]"


def doubled(first: str, step: str, last: str, times: int = 40) -> str:
    """`cel.bind(a0, FIRST, cel.bind(a1, STEP of a0, ... LAST of the last))`"""
    opening = f"cel.bind(a0, {first}, " + "".join(
        f"cel.bind(a{number}, {step.replace('$', f'a{number - 1}')}, " for number in range(1, times)
    )
    return opening + last.replace("$", f"a{times - 1}") + ")" * times


def loops(depth: int) -> str:
    expression = "true"
    for level in range(depth):
        expression = f"{FIFTY}.all(x{level}, {expression})"
    return expression


REFUSED = {
    "nested parentheses": "(" * 5000 + "1" + ")" * 5000,
    "nested lists": "[" * 5000,
    "a long sum": "1" + "+1" * 5000,
    "a long selection": "a" + ".a" * 5000,
    "a long optional selection": "a" + ".?a" * 3000,
    "a long index": "a" + "[0]" * 3000,
    "nested calls": "size(" * 3000,
    "nested conditionals": "true?1:" * 3000 + "1",
    "nested maps": "{'a':" * 3000,
    "nested comprehensions": loops(6),
    "a huge integer": "1" * 9000,
    "a huge hexadecimal integer": "0x" + "f" * 9000,
    "an unclosed text": "'" + "\\" * 9001,
    "a huge constant range": "lists.range(9223372036854775807)",
    "squared ranges": "lists.range(100000).map(x, lists.range(100000))",
    "a shared tree compared": doubled(FIFTY, "[$, $]", "$ == $"),
    "a shared tree printed": doubled(FIFTY, "[$, $]", "'%s'.format([$])"),
    "a shared tree flattened": doubled(FIFTY, "[$, $]", "$.flatten(100)"),
    "text doubled forty times": doubled("'x'", "$ + $", "$"),
    "text doubled inside optionals": doubled("'x'", "optional.of($ + $).value()", "$"),
    "text doubled inside lists": doubled("'x'", "[$ + $].first().value()", "$"),
    "text doubled by formatting": doubled("'x'", "'%s%s'.format([$, $])", "$"),
    "text doubled inside a map": doubled("'x'", "{'k': $ + $}.k", "$"),
    "text doubled behind dyn": doubled("'x'", "dyn([$ + $])[0]", "$"),
    "a list doubled forty times": doubled(FIFTY, "$ + $", "$"),
    "joined forty times": doubled("'x'", "[$, $].join($)", "$"),
    "ten kibibytes of minus signs": "-" * 10_000 + "1",
    "ten kibibytes of small lists": f"[{', '.join(['[1]'] * 2000)}]",
    "ten kibibytes of a wide list": f"[{','.join('1' * 5000)}]",
    "ten kibibytes of dots": "." * 10_000,
    "ten kibibytes of commas": "[" + "," * 10_000,
    "ten kibibytes of quotes in quotes": "'''" + "\\'" * 5000,
    "ten kibibytes of message literals": "a{" * 3000,
    "ten kibibytes of unknown names": " && ".join(f"x{number}" for number in range(1200)),
    "ten kibibytes of operators": " && ".join(["true"] * 1200) + " && 1" * 1300,
    "a hundred kibibytes of operators": " && ".join(["true"] * 12_000),
    "a hundred kibibytes of entries": f"{{{','.join(f'{number}:1' for number in range(12_000))}}}",
    "sets of lists": f"sets.contains([{','.join(['[1]'] * 800)}], lists.range(20000).map(x, [x]))",
    "a range of ranges of ranges": "lists.range(300).map(a, lists.range(300).map(b, lists.range(300)))",
    "distinct elements of a range": "lists.range(90000).distinct()",
}

FAILING = {
    "a regular expression too big": "'a'.matches('((a{100}){100}){100}')",
    "a huge precision": "'%.999999999f'.format([1.0])",
    "a huge quantity": f"quantity('{'9' * 9000}')",
    "a huge version": f"semver('1.2.{'3' * 9000}')",
    "a long duration": f"duration('{'1h' * 3000}')",
    "text that is no integer": f"int('{'9' * 9000}')",
    "a huge range": "lists.range(dyn(9223372036854775807))",
    "a big range": "lists.range(100001)",
    "a loop over text made of a range": "lists.range(60000).map(x, string(x)).join(',').size()",
    "an opened range": "lists.range(60000).map(x, [x]).flatten().size()",
    "text doubled out of sight of the checker": "['ab'].map(s, lists.range(90).map(i, s + s + s).join(s)).map("
    "s, lists.range(9000).map(i, s + s).join(s)).size()",
    "a pattern of many stars": f"'a'.matches('{'(a|b)*' * 8000}')",
    "text grown by replacing": f"'{'a' * 3000}'.replace('', '{'b' * 9000}')",
    "text grown by a pattern": f"regex.replace('{'a' * 9000}', '', '{'b' * 9000}')",
    "almost contained": f"'{'a' * 40_000}b'.contains('{'a' * 20_000}c')",
    "a huge address": f"ip('{':' * 90_000}')",
    "a huge block": f"cidr('1.2.3.4/{'3' * 90_000}')",
    "a huge url": f"url('/{'%' * 90_000}')",
    "a huge number": f"double('{'9' * 90_000}')",
    "a huge timestamp": f"timestamp('{'2' * 90_000}')",
    "a format that wants too much": f"'{'%f' * 4000}'.format([{','.join(['1e300'] * 100)}])",
}

ANSWERED = {
    "a catastrophic pattern": f"'{'a' * 60_000}'.matches('(a|b|ab)*c')",
    "many alternatives": f"'a'.matches('{'|'.join(f'a{number}' for number in range(9000))}')",
    "almost last": f"'{'a' * 40_000}'.lastIndexOf('b{'a' * 20_000}')",
    "loops in loops": "lists.range(40).exists(a, lists.range(40).exists(b, lists.range(40).exists(c, a * b < 0)))",
    "a sorted range": "lists.range(50000).map(x, -x).sort().size()",
    "a range by keys": "lists.range(20000).transformMap(i, v, {v: i}).size()",
    "equal ranges": "lists.range(60000) == lists.range(60000)",
    "ten kibibytes of addresses": " && ".join(f"isIP('10.0.{number % 256}.1')" for number in range(420)),
    "ten kibibytes of patterns": " || ".join(f"'a'.matches('(a{{{number}}}){{9}}b')" for number in range(28)),
    "ten kibibytes of escapes": f"'{chr(92)}n{(chr(92) + 'n') * 5000}'.size()",
    "a wide format": f"'{'%.100f' * 200}'.format([{','.join(['1e300'] * 200)}]).size()",
    "a hundred kibibytes of text": f"'{'x' * 99_000}'.size()",
}
