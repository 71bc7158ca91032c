"""Every function that Kubernetes documents works in each of its environments, from the version on that brought it."""

from __future__ import annotations

import pytest

from capstan import cel

VERSIONS = [(1, 34), (1, 35), (1, 36), (1, 37)]
FUNCTIONS = {
    "standard": """
        size('é') == 1 && 'é'.size() == 1 && size(b'ab') == 2 && size([1]) == 1 && size({'a': 1}) == 1
        'abc'.contains('b') && 'abc'.startsWith('a') && 'abc'.endsWith('c') && 'abc'.matches('^a.c$')
        int('1') == 1 && uint(1) == 1u && double('1.5') == 1.5 && string(1) == '1' && bytes('a') == b'a' && bool('true')
        type(1) == int && dyn(1) == 1 && type(timestamp(0)) == google.protobuf.Timestamp
        timestamp('2024-02-29T12:34:56.789Z').getFullYear() == 2024 && timestamp(0).getMonth() == 0
        timestamp(0).getDate() == 1 && timestamp(0).getDayOfMonth() == 0 && timestamp(0).getDayOfYear() == 0
        timestamp(0).getDayOfWeek() == 4 && timestamp(0).getHours('+01:00') == 1 && timestamp(0).getMinutes() == 0
        duration('90s').getMinutes() == 1 && duration('1h').getHours() == 1 && duration('1.5s').getMilliseconds() == 500
        [1, 2].exists(x, x == 2) && [1].all(x, x > 0) && [1].exists_one(x, true) && [1, 2].filter(x, x > 1) == [2]
        [1].map(x, x + 1) == [2] && [1, 2].map(x, x > 1, x) == [2] && has({'a': 1}.a)
        1 < 1.5 && 2u > 1 && 1.0 <= 1u
    """,
    "optionals": """
        optional.of(1).hasValue() && !optional.none().hasValue() && !optional.ofNonZeroValue(0).hasValue()
        optional.of(1).or(optional.of(2)).value() == 1 && optional.none().orValue(3) == 3
        optional.of(1).optMap(x, x + 1).value() == 2 && optional.of([1]).optFlatMap(x, x[?0]).value() == 1
        {'a': 1}.?a.value() == 1 && [1][?0].value() == 1 && [?optional.of(1)] == [1] && {?'a': {}.?b} == {}
    """,
    "strings": """
        'tacocat'.charAt(3) == 'o' && 'tacocat'.indexOf('a', 2) == 5 && 'tacocat'.lastIndexOf('a') == 5
        'TacoCat'.lowerAscii() == 'tacocat' && 'a'.upperAscii() == 'A' && 'aa'.replace('a', 'b', 1) == 'ba'
        'a b'.split(' ') == ['a', 'b'] && 'a b c'.split(' ', 2) == ['a', 'b c'] && ['a', 'b'].join('-') == 'a-b'
        'tacocat'.substring(4) == 'cat' && 'tacocat'.substring(0, 4) == 'taco' && ' a '.trim() == 'a'
        '%s has %d'.format([dyn('a'), 1]) == 'a has 1' && strings.quote('a') == '"a"'
    """,
    "two variables": """
        [1, 2].all(i, v, i < v) && {'a': 1}.exists(k, v, k == 'a' && v == 1) && [1].existsOne(i, v, v == 1)
        ['a'].transformList(i, v, v + string(i)) == ['a0'] && {'a': 1}.transformMap(k, v, v + 1) == {'a': 2}
        {'a': 'b'}.transformMapEntry(k, v, {v: k}) == {'b': 'a'}
    """,
    "lists": """
        [1, 2].isSorted() && ['a', 'b'].max() == 'b' && [2, 1].min() == 1 && [1, 3].sum() == 4
        [duration('1m'), duration('1s')].sum() == duration('61s') && [1, 2, 2].indexOf(2) == 1
        ['a', 'b', 'b'].lastIndexOf('b') == 2
        [3, 1].sort() == [1, 3] && ['bb', 'a'].sortBy(s, s.size()) == ['a', 'bb'] && [1, 1].distinct() == [1]
        [1, 2, 3].slice(1, 2) == [2] && [[1], [2]].flatten() == [1, 2] && [1, 2].reverse() == [2, 1]
        lists.range(2) == [0, 1] && [1].first().value() == 1 && [1].last().value() == 1
    """,
    "sets": """
        sets.contains([1, 2], [2]) && sets.equivalent([1, 2], [2, 1, 1]) && sets.intersects([1], [1, 2])
    """,
    "regex": """
        'abc 123'.find('[0-9]+') == '123' && '1 2'.findAll('[0-9]') == ['1', '2'] && '1 2'.findAll('[0-9]', 1) == ['1']
    """,
    "url": """
        url('https://example.com:80/a?k=v').getScheme() == 'https' && isURL('/a') && !isURL('../a')
        url('https://[::1]:80/').getHost() == '[::1]:80' && url('https://[::1]:80/').getHostname() == '::1'
        url('https://a:80/b c').getEscapedPath() == '/b%20c' && url('https://a:80/').getPort() == '80'
        url('https://a/?k=1&k=2').getQuery() == {'k': ['1', '2']}
    """,
    "ip and cidr": """
        ip('127.0.0.1').family() == 4 && isIP('::1') && ip.isCanonical('::1') && string(ip('::1')) == '::1'
        ip('127.0.0.1').isLoopback() && ip('0.0.0.0').isUnspecified() && ip('10.0.0.1').isGlobalUnicast()
        ip('224.0.0.1').isLinkLocalMulticast() && ip('169.254.0.1').isLinkLocalUnicast() && type(ip('::1')) == net.IP
        cidr('10.0.0.0/8').containsIP('10.1.1.1') && cidr('10.0.0.0/8').containsCIDR(cidr('10.1.0.0/16'))
        cidr('10.0.0.1/8').ip() == ip('10.0.0.1') && cidr('10.0.0.1/8').masked() == cidr('10.0.0.0/8')
        cidr('10.0.0.0/8').prefixLength() == 8 && isCIDR('::/0') && string(cidr('::/0')) == '::/0'
    """,
    "quantity": """
        quantity('1.5Gi').compareTo(quantity('1536Mi')) == 0 && isQuantity('1k') && quantity('-1').sign() == -1
        quantity('2').isGreaterThan(quantity('1')) && quantity('1').isLessThan(quantity('2'))
        quantity('1k').isInteger() && quantity('1k').asInteger() == 1000 && quantity('1.5').asApproximateFloat() == 1.5
        quantity('1').add(quantity('1')).sub(1).add(2) == quantity('3') && sign(quantity('0')) == 0
    """,
    "semver": """
        semver('1.2.3').isLessThan(semver('1.10.0')) && semver('2.0.0').isGreaterThan(semver('1.0.0'))
        semver('v1.2', true).compareTo(semver('1.2.0')) == 0 && isSemver('1.0.0') && !isSemver('v1')
        isSemver('v1', true)
        semver('1.2.3').major() == 1 && semver('1.2.3').minor() == 2 && semver('1.2.3').patch() == 3
    """,
    "format": """
        !format.dns1123Label().validate('a-b').hasValue() && format.dns1123Subdomain().validate('A').hasValue()
        !format.dns1035Label().validate('a').hasValue() && format.dns1035Label().validate('1').hasValue()
        !format.dns1123LabelPrefix().validate('a-').hasValue()
        !format.dns1123SubdomainPrefix().validate('a.b-').hasValue()
        !format.dns1035LabelPrefix().validate('a-').hasValue() && !format.qualifiedName().validate('a.b/C').hasValue()
        !format.labelValue().validate('').hasValue() && !format.uri().validate('/a').hasValue()
        !format.uuid().validate('123e4567-e89b-12d3-a456-426614174000').hasValue()
        format.byte().validate('!').hasValue()
        !format.date().validate('2024-02-29').hasValue() && format.datetime().validate('2024').hasValue()
        format.named('uuid').hasValue() && !format.named('nope').hasValue()
    """,
}
LINES = [line.strip() for block in FUNCTIONS.values() for line in block.strip().splitlines()]


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: f"{version[0]}.{version[1]}")
@pytest.mark.parametrize("expression", LINES)
def test_the_function_works_in_every_environment(expression: str, version: tuple[int, int]) -> None:
    for environment in (
        cel.environments.device_selector(version),
        cel.environments.admission(version=version),
        cel.environments.crd_rule({"type": "object"}, version=version),
    ):
        assert cel.compile(expression, environment).evaluate({}) is True, environment.name
