"""What Jinja2, set up as transformers sets it up for chat templates, gives for the templates below.

    python3 tests/suite/jinja/cases.py > tests/suite/jinja/results.json

Needs only jinja2 (3.1.6 or later). Each row has `template` and what it renders to, or `error` where Python refuses it.
"""

import json
import sys
from datetime import datetime

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment

CONTEXT = {
    "s": "Hello, World", "empty": "", "u": "Grüße 世界 😀", "multi": "one\ntwo\r\n\nthree\n", "html": "<a href='x'>&\"</a>",
    "n": 7, "neg": -3, "x": 2.5, "big": 1e20, "yes": True, "no": False, "nothing": None,
    "l": [3, 1, 2], "words": ["pear", "Apple", "fig", "apple"], "mixed": [1, "a", None, 2.0, True], "nested": [[1, 2], [3, [4]]],
    "d": {"b": 1, "a": [1, 2], "c": {"x": None}}, "items": [{"k": "B", "v": 2}, {"k": "a", "v": 1}, {"k": "b", "v": 3}, {"v": 0}],
    "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": " Yo\n"}], "tools": None,
    "key": {"items": 5, "get": 6, "1": "one", "": "none"}, "tabs": "a\tb\tc",
}


class Generation(jinja2.ext.Extension):
    """The `generation` tag: a call block, as in transformers."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller):
        return caller()


class TemplateDict:
    """`dict` without the attributes of a class, as in transformers."""

    def __call__(self, *args, **kwargs):
        return dict(*args, **kwargs)

    def fromkeys(self, *args, **kwargs):
        return dict.fromkeys(*args, **kwargs)


class TemplateNamespace(jinja2.utils.Namespace):
    """A namespace that keeps no names with an underscore first, as in transformers."""

    def __init__(*args, **kwargs):
        self, attributes = args[0], dict(*args[1:], **kwargs)
        for name in attributes:
            TemplateNamespace._check(name)
        jinja2.utils.Namespace.__init__(self, attributes)

    def __setitem__(self, name, value):
        TemplateNamespace._check(name)
        jinja2.utils.Namespace.__setitem__(self, name, value)

    @staticmethod
    def _check(name):
        if isinstance(name, str) and name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"a namespace cannot keep {name!r}")


def environment():
    def raise_exception(message):
        raise jinja2.exceptions.TemplateError(message)

    def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
        return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = raise_exception
    env.globals["dict"] = TemplateDict()
    env.globals["namespace"] = TemplateNamespace
    env.globals["strftime_now"] = lambda form: datetime(2025, 7, 10, 12, 0).strftime(form)
    return env


def expressions():
    """Expressions, each printed by itself."""
    # Literals and operators.
    yield from """1 | 1_000 | 0x1f | 0b11 | 0o17 | 1.0 | 1e3 | 1.5e-7 | 1e16 | 123456789012345678 | 1E5 | .5 | 1. | 'a' 'b' | "a'b" | 'a"b'
true | True | TRUE | none | None | null | false | [] | [1,] | () | (1,) | (1) | (1, 2) | 1, 2 | 1, | {} | {'a': 1,} | {1: 2, 'x': [3]} | [1, 2.0, 'x', none, true, (1,), {}]
1 + 2 | 1 + 2.0 | 7 / 2 | 6 / 2 | 7 // 2 | -7 // 2 | 7 % 3 | -7 % 3 | 7 % -3 | 7.5 // 2 | -7.5 % 2 | 2 ** 10 | 2 ** -1 | 2 ** 3 ** 2 | -2 ** 2 | 2 ** 0.5 | 1 / 0 | 1 % 0 | 1 // 0 | 0.1 + 0.2 | 1e308 * 10 | -n | +n | - -n | -x | -s | +s
1 + true | true + true | 'a' + 'b' | 'a' + 1 | 1 + 'a' | 'a' ~ 1 ~ none ~ 2.0 ~ true | [1] + [2] | (1,) + (2,) | [1] + (2,) | 'ab' * 3 | 3 * 'ab' | 'ab' * -1 | [1, 2] * 2 | 'a' * 2.0 | [1] * 'a' | l - l | none + 1 | s - 1 | n / s | {} + {}
1 == 1.0 | 1 == true | '1' == 1 | [1] == [1.0] | (1,) == [1] | {'a': 1} == {'a': 1.0} | none == false | undefined_a == undefined_b | undefined_a == none | 1 != 2 | 'a' < 'b' | 'Z' < 'a' | [1, 2] < [1, 3] | [1] < [1, 0] | 1 < 'a' | none < 1 | 1 < 2 < 3 | 1 < 3 < 2 | 1 == 1 == 1 | 3 > 2 >= 2 | 1 in l | 4 not in l | 'x' in d | 'b' in d | 'll' in s | '' in s | 1 in s | 1 in n | 1 in undefined_a | 'a' in none | not 1 in l | (1 in l) == true | 2.0 in l
1 and 2 | 0 and 2 | 0 or 'x' | '' or none | not '' | not not 1 | 1 if yes | 1 if no | 1 if no else 2 | 1 if no else 2 if no else 3 | (1 if no) is defined | 'a' if yes if no | 1 if yes and not no or nothing
n | x | big | yes | nothing | undefined_a | s | u | l | d | nested | mixed | key | empty | html
undefined_a.b | undefined_a['b'] | undefined_a() | undefined_a + 1 | undefined_a ~ 'x' | undefined_a < 1 | -undefined_a | undefined_a is defined | d.zz | d['zz'] | d.zz.y | l[9] | l[9].x | l.zz | s.zz | n.zz | nothing.x | nothing['x'] | nothing[0] | 'x' ~ d.zz ~ 'y' | l['0'] | s[99] | d[[1]] | d[l]
l[0] | l[-1] | l[true] | l[1:] | l[:-1] | l[::-1] | l[::2] | l[5:] | l[-2:] | l[0:0] | l[1:2:3] | l[::0] | l['a':] | s[0] | s[-1] | s[1:4] | s[::-1] | s[7:] | s[:5:2] | u[0] | u[-1] | u[-3:] | (1, 2, 3)[1:] | (1, 2, 3)[0] | 'abc'[1] | d['a'] | d.a | d.a[0] | d['c'].x | d.c['x'] | nested[1][1][0] | nested.1.0 | l.0 | key['1'] | key[''] | key.items | key['items'] | key.get | key['get'] | d[1:2] | n[0] | n[1:2] | d['a', 'b'] | {(1, 2): 3}[1, 2] | {1: 'x'}[1.0] | {1: 'x'}[true] | {'a': 1, 'a': 2} | {1: 'a', 1.0: 'b', true: 'c'} | {none: 1}[none]
range(3) | range(1, 4) | range(0, 10, 3) | range(5, 0, -2) | range(3)[1] | range(9)[2:5] | range(9)[::-1] | range(3) | list == [0, 1, 2] | range(0) | list | range(3) == range(0, 3) | range(1, 2, 0) | range('a') | range(1.5) | range(100001) | range(10 ** 12) | range(3) | length | 2 in range(3) | range(3)[7]
dict(a=1, b=2) | dict([('a', 1)], b=2) | dict({'a': 1}) | dict(d, z=1) | dict(1) | dict() | dict(l) | namespace(a=1).a | namespace(a=1).b | namespace({'a': 2}).a | namespace(_a=1) | dict.fromkeys(['a', 'b']) | dict.fromkeys('ab', 0) | dict.fromkeys('aab', [])
s.upper() | s.lower() | 'hELLO wORLD'.capitalize() | "they're bill's x1y".title() | 'aB1'.swapcase() | 'ß'.upper() | 'Straße'.casefold() | 'İ'.lower() | 'ΑΣ'.lower() | '  x  '.strip() | '  x  '.lstrip() ~ '|' | '  x  '.rstrip() ~ '|' | 'xxaxx'.strip('x') | 'abcba'.strip('ab') | 'xxa'.lstrip('x') | 'axx'.rstrip('x') | ' x '.strip(none) | ' x '.strip(1) | '\u00a0x\u2003'.strip() | 'a'.strip('') | '\x1cx\x1f'.strip()
'a,b,,c'.split(',') | ' a  b c '.split() | 'a,b,c'.split(',', 1) | 'a b c'.split(none, 1) | ' a b  c '.split(none, 1) | 'a,b'.split(sep=',') | 'abc'.split('') | ''.split() | ''.split(',') | 'a,b,c'.rsplit(',', 1) | '  a b c '.rsplit(none, 1) | 'a b c'.rsplit() | 'a,b,c'.rsplit(',', maxsplit=1) | 'aXbXc'.split('X', 0) | ' a b '.split(maxsplit=0) | multi.splitlines() | multi.splitlines(true) | ''.splitlines() | '\n'.splitlines() | 'a\x0bb\x1cc\u2028d'.splitlines() | 'k=v=w'.partition('=') | 'k'.partition('=') | 'k=v=w'.rpartition('=') | 'k'.rpartition('=') | 'k'.partition('') | 'k=v'.partition('=')[2]
s.replace('l', 'L') | s.replace('l', 'L', 1) | s.replace('', '-') | 'aaa'.replace('aa', 'b') | 'aaa'.replace('a', '', 2) | s.replace('l') | s.replace(1, 2) | 'aaa'.replace('a', 'b', -1) | s.find('o') | s.find('z') | s.find('o', 5) | s.find('o', -3) | s.rfind('o') | s.index('W') | s.index('z') | s.rindex('l') | u.find('世') | s.find('', 99) | s.count('l') | 'aaaa'.count('aa') | s.count('') | s.count('l', 4) | s.count('l', 0, 3) | s.startswith('Hell') | s.startswith(('x', 'H')) | s.startswith('e', 1) | s.endswith('ld') | s.endswith(('x', 'd')) | s.endswith('o', 0, 5) | s.startswith(['H']) | s.startswith(1) | s.startswith('') | ''.startswith('', 1) | s.removeprefix('Hello') | s.removesuffix('World') | s.removeprefix('x')
', '.join(['a', 'b']) | ''.join('abc') | ','.join([1]) | ','.join([]) | '-'.join({'a': 1, 'b': 2}) | '-'.join(words | map('lower')) | 'x'.join(n) | 'abc'.center(7) ~ '|' | 'abc'.center(8, '*') | 'ab'.center(5, '*') | 'a'.ljust(3) ~ '|' | 'a'.rjust(3) | 'a'.rjust(3, '.') | 'a'.rjust(3, '..') | '42'.zfill(5) | '-42'.zfill(5) | 'x'.zfill(2) | tabs.expandtabs() | tabs.expandtabs(4) | tabs.expandtabs(0) | 'a'.ljust('b')
'abc'.isalpha() | 'ab1'.isalnum() | '12'.isdigit() | '²'.isdigit() | '½'.isnumeric() | '½'.isdigit() | '١'.isdecimal() | 'aB'.islower() | 'ab1'.islower() | 'AB'.isupper() | '1'.isupper() | ' \n'.isspace() | ''.isspace() | 'Ab Cd'.istitle() | 'ab'.istitle() | 'a_1'.isidentifier() | '1a'.isidentifier() | 'é'.isascii() | ''.isascii() | 'a\n'.isprintable() | ''.isalpha()
'{} {}'.format(1, 'a') | '{1}{0}'.format('a', 'b') | '{x}-{y}'.format(x=1, y=2) | '{0[a]}'.format(d) | '{0.b}'.format(d) | '{:>5}|'.format('ab') | '{:<5}|'.format('ab') | '{:^5}|'.format('ab') | '{:*^6}|'.format('ab') | '{:05d}'.format(42) | '{:+d}'.format(5) | '{:,}'.format(1234567) | '{:_x}'.format(123456789) | '{:.2f}'.format(3.14159) | '{:8.3f}|'.format(2.5) | '{:e}'.format(12345.678) | '{:g}'.format(0.00001) | '{:g}'.format(1e10) | '{:%}'.format(0.25) | '{:x}'.format(255) | '{:#x}'.format(255) | '{:b}'.format(5) | '{:o}'.format(8) | '{:c}'.format(97) | '{!r}'.format('a') | '{!s:>4}'.format('a') | '{{}}'.format() | '{}'.format() | '{x}'.format() | '{'.format() | '}'.format() | '{:d}'.format('a') | '{:s}'.format(1) | '{:.3}'.format('abcdef') | '{:.3}'.format(3.14159) | '{:10}|'.format(1) | '{:10}|'.format(true) | '{:10}|'.format(1.5) | '{:{}}|'.format('a', 4) | '{a}'.format_map({'a': 1}) | '{}'.format(l) | '{}'.format(none) | '{:5}'.format(none) | '{:,.2f}'.format(1234567.891) | '{:010.2f}'.format(-3.14159) | '{:=+7d}'.format(42) | '{:s}'.format('x') | '{!z}'.format(1) | '{0} {}'.format(1, 2)
'%s' % 'a' | '%s-%03d' % ('x', 7) | '%d' % 3.7 | '%d' % 'a' | '%5.2f|' % 3.14159 | '%-5s|' % 'a' | '%5s|' % 'a' | '%+d' % 5 | '%x' % 255 | '%X' % 255 | '%o' % 8 | '%#x' % 255 | '%e' % 12345.678 | '%g' % 1e-5 | '%G' % 1e-10 | '%r' % 'a' | '%c' % 97 | '%c' % 'z' | '%%' % () | '%s %s' % ('a',) | '%s' % ('a', 'b') | '%(a)s %(b)d' % {'a': 'x', 'b': 2} | '%(z)s' % {'a': 1} | '%s' % l | '%s' % (l,) | '%s' % none | '%s' % true | '%.2s' % 'abc' | '%*d' % (5, 3) | '%z' % 1 | '% d' % 5 | '%05d' % -3 | '%i' % 3 | '%' % 1 | 'abc' % l | 'abc' % 1 | '%.3d' % 7 | '%f' % 1 | '%5%' % () | '%s' % undefined_a
l.count(1) | l.index(2) | l.index(9) | (1, 2, 1).count(1) | l.append(4) | l.sort() | l.copy() | d.keys() | d.values() | d.items() | d.keys() | list | d.items() | list | d.get('b') | d.get('z') | d.get('z', 5) | d.get() | d.get('a').0 | d.pop('a') | d.update({}) | d.copy() | d.items() | length | d.keys()[0] | 'b' in d.keys() | d.items | d.append | l.append is defined | 2.0.is_integer() | 2.5.is_integer() | n.bit_length()"""\
        .replace("'|'", "'\x00'").replace("|'.format", "\x00'.format").replace("|' %", "\x00' %").replace("\n", " | ").split(" | ")


def filters():
    """Filters and tests."""
    yield from r"""neg|abs;;'a'|abs;;-2.5|abs;;undefined_a|abs;;true|abs
d|attr('items') is defined;;d|attr('b')|default('no');;'abc'|attr('upper') is callable;;[1,2,3,4,5]|batch(2)|list;;[1,2,3]|batch(2, 'x')|list;;l|batch(0)|list;;l|batch(2);;[1,2,3,4,5]|slice(2)|list;;[1,2,3,4,5]|slice(3, 'x')|list;;l|slice(0)|list
s|capitalize;;'ÀB'|capitalize;;n|capitalize;;s|center(20) ~ '!';;'abc'|center(6) ~ '!';;'x'|center|length;;undefined_a|center(3) ~ '!'
s|count;;l|length;;d|length;;n|length;;nothing|length;;undefined_a|length;;u|length;;(l|map('string'))|length;;range(4)|count
undefined_a|default('x');;nothing|default('x');;nothing|default('x', true);;''|d('e', boolean=true);;s|default;;undefined_a|default;;undefined_a.b|default('x');;d.z|default('x');;d.z.y|default(1);;0|default(1, false)
d|dictsort;;{'B': 1, 'a': 2}|dictsort;;{'B': 1, 'a': 2}|dictsort(true);;{'B': 1, 'a': 2}|dictsort(by='value', reverse=true);;{1: 1, 'a': 2}|dictsort;;l|dictsort;;d|dictsort(by='x')
html|e;;html|escape;;html|forceescape;;(html|e) ~ '<';;(html|e) + '<';;'<' + (html|e);;html|safe;;(html|safe) + '<';;(html|safe)|escape;;(html|e)|upper;;(html|e)|length;;('<'|e) * 2;;('<'|safe) is escaped;;['<', '>'|safe]|join('&');;('%s'|safe)|format('<');;('<'|safe).join(['<', '&']);;[('<'|safe)];;('a'|safe)|tojson
100|filesizeformat;;1|filesizeformat;;1000|filesizeformat;;1500|filesizeformat;;1234567|filesizeformat;;1024|filesizeformat(true);;1048576|filesizeformat(binary=true);;'10'|filesizeformat;;1e30|filesizeformat
l|first;;[]|first;;''|first;;s|first;;d|first;;[]|first is defined;;n|first;;undefined_a|first;;l|last;;[]|last;;s|last;;d|last;;(l|map('string'))|last;;(l|map('string'))|first;;range(3)|last
'1.5'|float;;'x'|float;;'x'|float(9);;n|float;;'inf'|float;;' 1e3 '|float;;nothing|float;;undefined_a|float;;'1_0'|float;;true|float;;l|float;;'nan'|float
'%s %d'|format('a', 3);;'%(a)s'|format(a=1);;'%s'|format;;'%s'|format('a', b=1);;'%05.1f'|format(2.25)
items|groupby('v')|length;;items[:3]|groupby('k');;items[:3]|groupby('k', case_sensitive=true);;items|groupby('k', default='zz')|map('first')|list;;items|groupby('k');;[[1, 2], [1, 3]]|groupby(0);;items[:3]|groupby('k')|map(attribute='grouper')|list;;items[:3]|groupby('k')|map(attribute='list')|map('length')|list;;(items[:3]|groupby('v'))[0].list
multi|indent;;multi|indent(2, true);;multi|indent(2, blank=true);;'a\nb'|indent('> ');;'a\nb'|indent(width=1, first=true);;'a\n'|indent;;n|indent;;''|indent(2, true) ~ '!';;'a\r\nb'|indent;;undefined_a|indent
'42'|int;;' 42 '|int;;'4.7'|int;;'x'|int;;'x'|int(-1);;'0x1f'|int(base=16);;'1f'|int(0, 16);;'z'|int(base=36);;4.9|int;;-4.9|int;;true|int;;nothing|int;;l|int;;undefined_a|int;;'1_000'|int;;'12abc'|int;;'0b11'|int(base=2);;'0x10'|int(base=0);;'9'|int(base=8);;'1'|int(base=1);;'inf'|int;;'1e3'|int;;''|int;;'+5'|int;;'--5'|int
l|join;;l|join(', ');;['a','b']|join(d=', ');;items[:3]|join(',', attribute='k');;items[:3]|join(attribute='v');;d|join(',');;s|join('-');;n|join;;[none, true, 1.0]|join(' ');;undefined_a|join(',');;[[1], {}]|join('/');;l|join(1);;items|join(',', 'k')
l|list;;s|list;;d|list;;undefined_a|list;;n|list;;'aB'|lower;;n|lower;;nothing|upper;;l|upper;;d|items|list;;d|items;;l|items;;undefined_a|items|list;;words|map('upper')|list;;words|map('upper');;items|map(attribute='k')|list;;items|map(attribute='k', default='?')|list;;items|map(attribute='zz.y')|list;;items[:1]|map(attribute='v', x=1)|list;;l|map|list;;l|map('nofilter')|list;;words|map('replace', 'p', 'q')|list;;l|map('string')|join('+');;undefined_a|map('upper')|list;;nested|map('first')|list;;nested|map(attribute=1)|list;;nested|map(attribute='1')|list;;words|map('length')|sum;;[]|map('x')|list;;words|map('default', 'x')|list;;l|map('tojson')|join
l|min;;l|max;;[]|max;;words|min;;words|max;;words|min(case_sensitive=true);;items|max(attribute='v');;mixed|max;;s|min;;d|max;;[]|min is defined;;(1, 2.5)|max;;[true, 2]|max
l|reject('odd')|list;;l|reject|list;;mixed|select|list;;l|select('odd')|list;;l|select('>', 1)|list;;l|select('in', [1, 2])|list;;mixed|select('string')|list;;mixed|reject('none')|list;;l|select('notest')|list;;items|selectattr('k')|map(attribute='v')|list;;items|selectattr('k', 'defined')|list|length;;items|selectattr('k', 'equalto', 'a')|list;;items|rejectattr('v')|list;;items|rejectattr('k', 'undefined')|list|length;;items|selectattr('v', '>=', 2)|map(attribute='k')|join;;items|selectattr|list;;d|select('equalto', 'a')|list;;messages|selectattr('role', 'equalto', 'user')|list|length;;messages|selectattr('role', 'in', ['user'])|map(attribute='content')|first;;items|selectattr('k.x', 'defined')|list;;undefined_a|select|list;;l|select('divisibleby', 3)|list;;n|select|list;;items|selectattr('v', 'odd')
s|replace('l', 'L');;s|replace('l', 'L', 1);;n|replace('7', 'x');;'1'|replace(1, 2);;s|replace('l');;undefined_a|replace('a', 'b');;l|replace(', ', ';');;s|replace(old='l', new='_', count=2);;s|replace('', '.')
l|reverse|list;;l|reverse;;s|reverse;;d|reverse|list;;n|reverse;;(1, 2)|reverse|list;;undefined_a|reverse;;2.5|round;;3.5|round;;2.567|round(2);;-2.5|round;;2.1|round(0, 'ceil');;2.9|round(method='floor');;7|round;;1234|round(-2);;1250|round(-2);;2.675|round(2);;'a'|round;;2.5|round|int;;0.5|round;;1e20|round;;2.5|round(method='x');;7|round(1, 'ceil');;undefined_a|round
l|sort;;l|sort(reverse=true);;words|sort;;words|sort(case_sensitive=true);;items[:3]|sort(attribute='k');;items[:3]|sort(attribute='k,v')|map(attribute='v')|list;;items|sort(attribute='v', reverse=true)|map(attribute='v')|list;;mixed|sort;;d|sort;;s|sort|join;;[[2, 1], [1, 2]]|sort;;[[2, 1], [1, 2]]|sort(attribute=1);;[[2, 1], [1, 2]]|sort(attribute='1');;l|sort(true);;[true, 0, 1.5]|sort;;items|sort(attribute='k');;n|sort;;undefined_a|sort;;[none, none]|sort
n|string;;l|string;;nothing|string;;(n|string) is string;;undefined_a|string;;[1, 2.5]|sum;;items|sum(attribute='v');;l|sum(start=10);;words|sum;;[]|sum;;[[1], [2]]|sum(start=[]);;nothing|sum;;'ab'|sum
'hello wORLD foo-bar (baz) x1y'|title;;"they're"|title;;n|title;;'  x '|trim ~ '!';;'xxaxx'|trim('x');;n|trim;;undefined_a|trim;;l|trim('[]');;'ab'|trim(chars='b');;nothing|trim
'a long text here'|truncate(9);;'a long text here'|truncate(9, true);;'a long text here'|truncate(9, false, '…');;'short'|truncate(9);;'a long text here'|truncate(9, leeway=0);;'a long text here'|truncate(2);;undefined_a|truncate;;n|truncate;;('x' * 300)|truncate|length;;'aaaa bbbb'|truncate(length=6, end='', leeway=0)
words|unique|list;;words|unique(true)|list;;[1, 1.0, true, 2]|unique|list;;items|unique(attribute='k')|map(attribute='v')|list;;nested|unique|list;;'aabb'|unique|join;;[none, none]|unique|list;;[(1,), (1,)]|unique|list;;undefined_a|unique|list
'a b/c?d=é'|urlencode;;{'a': 'b c', 'd': 1}|urlencode;;[('a', '/')]|urlencode;;n|urlencode;;undefined_a|urlencode;;s|wordcount;;'a b'|wordcount;;"it's a-b"|wordcount;;n|wordcount;;undefined_a|wordcount;;{'a': 1, 'b': none, 'c': '<'}|xmlattr;;{'a': 1}|xmlattr(false);;{'a b': 1}|xmlattr;;l|xmlattr
d|tojson;;l|tojson;;s|tojson;;u|tojson;;u|tojson(ensure_ascii=true);;d|tojson(indent=2);;d|tojson(indent=0);;d|tojson(sort_keys=true);;d|tojson(separators=(',', ':'));;[1.0, 1e20, true, none]|tojson;;undefined_a|tojson;;(1, 2)|tojson;;{1: 2, none: 3, true: 4, 1.5: 5}|tojson;;{(1,): 2}|tojson;;d.items()|tojson;;range(2)|tojson;;[]|tojson(indent=2);;{'a': [], 'b': {}}|tojson(indent=2);;html|tojson;;'\x7f\x00\u2028'|tojson;;words|map('upper')|tojson;;d|tojson(indent='--');;d|tojson(nope=1);;d|tojson(2);;items[:3]|groupby('k')|tojson;;{'b': 1, 'a': 2}|tojson(true, none, none, true);;1e16|tojson;;(1e308 * 10)|tojson;;namespace(a=1)|tojson
s|nofilter;;s|upper(1);;s|default(zz=1);;1|upper|length;;'a'|upper()|lower;;s|select
n is odd;;n is even;;2.0 is even;;s is odd;;n is divisibleby 7;;n is divisibleby(2);;n is divisibleby 0;;s is defined;;undefined_a is undefined;;d.z is defined;;'upper' is filter;;'nope' is filter;;'odd' is test;;nothing is none;;undefined_a is none;;yes is boolean;;n is boolean;;yes is true;;1 is true;;no is false;;n is integer;;yes is integer;;x is float;;n is float;;yes is number;;s is number;;'ab' is lower;;'AB' is upper;;'1' is lower;;n is lower;;s is string;;d is mapping;;l is mapping;;l is sequence;;s is sequence;;d is sequence;;n is sequence;;undefined_a is sequence;;d.items() is sequence;;(l|map('abs')) is sequence;;range(2) is sequence;;l is iterable;;n is iterable;;nothing is iterable;;undefined_a is iterable;;(l|map('abs')) is iterable;;range is callable;;s is callable;;s.upper is callable;;undefined_a is callable;;nothing is sameas none;;1 is sameas true;;yes is sameas true;;l is sameas l;;[] is sameas [];;html|safe is escaped;;s is escaped;;n is in [7];;s is in s;;n is eq 7;;n is == 7;;n is equalto 8;;n is ne 7;;n is gt 6;;n is ge(7);;n is lt 6;;n is lessthan 9;;n is le 7;;n is greaterthan 3;;n is not odd;;n is not divisibleby 2;;n is nope;;n is odd is even;;not n is odd;;n is odd and s is string;;n is odd == true;;n is defined and n;;nothing is not none or n is none;;-n is odd;;n + 1 is even;;n is sameas;;n is odd(1)"""\
        .replace("\n", ";;").split(";;")


TEMPLATES = [
    # White space: trim_blocks, lstrip_blocks and signs.
    "a\n{% if yes %}\nb\n{% endif %}\nc\n", "a\n  {% if yes %}  \n  b\n  {% endif %}\nc", "a {%- if yes -%} b {%- endif -%} c", "a\n  {%+ if yes %}\nb{% endif +%}\nc",
    "  {{ n }}\n  {{- n -}}  \n x", "{{ n }}\n", "{{ n }}\n\n", "{{ n }}\r\n", "a\r\nb\rc\n", "x {# c #}\ny", "x\n  {# c #}\n y", "x {#- c -#} y", "x\n {#+ c +#}\ny", "{##}a", "{#-#}\n a",
    "{% raw %}{{ x }}{% endraw %}", "a {%- raw -%} {{ }} {%- endraw -%} b", "{% raw %}\na\n{% endraw %}\nb", "  {% raw %}  x  {% endraw %}  y", "{% raw -%}  x{% endraw %}", "\n\n{% set q = 1 %}\n\n{{ q }}",
    "{% if yes %}a{% endif %}\n\nb", "{{ '{{' }} {{ '%}' }} {{ \"{#\" }}", "{ { % } }", "{{ {'a': {'b': 1}}['a']['b'] }}", "{{{'a': 1}.a}}", "{% set a = {'x': 1} %}{{ a }}", "{%- set a = 1 -%}\n\n {{- a }}", "a\n\t{%- if yes %} b{% endif %}",
    " {% if yes %} x {% endif %} ", "{% if yes %}\n\n x\n{% endif %}", "x{% if yes +%}\n y{% endif %}", "{{ 'a\\nb\\t\\'\\\"\\\\\\x41\\u00e9\\101\\q' }}", "{{ 'a\nb' }}", "{{ 'a\r\nb' }}", "{{ '\\\n' }}", "{{ 'x' }}\u2028{{ 'y' }}", "a\u00a0\n{%- if yes %}b{% endif %}",
    # Statements.
    "{% for i in l %}{{ loop.index }}{{ loop.index0 }}{{ loop.revindex }}{{ loop.revindex0 }}{{ loop.first }}{{ loop.last }}{{ loop.length }}{{ loop.previtem }}{{ loop.nextitem }}{{ loop.depth }}{{ loop.depth0 }};{% endfor %}",
    "{% for i in l %}{{ loop.cycle('a', 'b') }}{{ loop.changed(i // 2) }}{% endfor %}", "{% for i in [] %}x{% else %}none{% endfor %}", "{% for i in [1] %}{% continue %}{% else %}E{% endfor %}", "{% for i in [1, 2] %}{% break %}{% else %}E{% endfor %}",
    "{% for i in [1, 2, 3] %}{% if i == 2 %}{% continue %}{% endif %}{{ i }}{% else %}E{% endfor %}", "{% for i in range(9) %}{% if i > 3 %}{% break %}{% endif %}{{ i }}{% endfor %}", "{% for i in l if i > 1 %}{{ i }}{{ loop.index }}/{{ loop.length }} {% endfor %}",
    "{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}", "{% for k in d %}{{ k }}{% endfor %}", "{% for k, v in d | dictsort %}{{ k }}{% endfor %}", "{% for (a, b) in [(1, 2)] %}{{ a }}{{ b }}{% endfor %}", "{% for a, (b, c) in [(1, (2, 3))] %}{{ a }}{{ b }}{{ c }}{% endfor %}", "{% for a, b in [(1, 2, 3)] %}{% endfor %}", "{% for a, b in [1] %}{% endfor %}",
    "{% for c in 'añ😀' %}[{{ c }}]{% endfor %}", "{% for i in nothing %}{% endfor %}", "{% for i in n %}{% endfor %}", "{% for i in undefined_a %}x{% else %}e{% endfor %}", "{% for i in 1, 2 %}{{ i }}{% endfor %}", "{% for i in l %}{% for j in l %}{{ loop.index }}{% endfor %}{{ loop.index }} {% endfor %}",
    "{% for i in nested recursive %}[{{ loop.depth }}{% if i is iterable %}{{ loop(i) }}{% else %}{{ i }}{% endif %}]{% endfor %}", "{% for i in l %}{{ loop(l) }}{% endfor %}", "{% for i in l %}{% endfor %}{{ i }}{{ loop is defined }}", "{% set i = 9 %}{% for i in l %}{{ i }}{% endfor %}{{ i }}", "{% set t = 0 %}{% for i in l %}{% set t = t + i %}{{ t }}{% endfor %}{{ t }}", "{% for i in l %}{% set z = i %}{% endfor %}{{ z is defined }}",
    "{% set ns = namespace(t=0) %}{% for i in l %}{% set ns.t = ns.t + i %}{% endfor %}{{ ns.t }}", "{% set ns = namespace() %}{% set ns.a = 1 %}{{ ns.a }}{{ ns.b is defined }}{{ ns }}", "{% set ns = namespace(a=1) %}{% set ns.a, ns.b = 2, 3 %}{{ ns.a }}{{ ns.b }}", "{% set d.x = 1 %}", "{% set zz.x = 1 %}", "{% set ns = namespace() %}{% set ns._x = 1 %}", "{% set ns = namespace(a=1) %}{{ ns['a'] }}{{ ns.get is defined }}",
    "{% for i in (l | map('string')) %}{{ loop.last }}{{ loop.length }}{% endfor %}", "{% set g = l | map('string') %}{{ g | list }}{{ g | list }}", "{% set g = d.items() %}{{ g | list }}{{ g | list }}", "{% for i in l %}{{ loop }}{% endfor %}",
    "{% if no %}a{% elif n > 5 %}b{% elif true %}c{% else %}d{% endif %}", "{% if 0 %}a{% else %}b{% endif %}", "{% if no %}a{% endif %}x", "{% if '' or none or [] or {} or 0.0 or () %}y{% else %}n{% endif %}", "{% if namespace() %}y{% endif %}{% if range(0) %}y{% else %}n{% endif %}", "{% if yes %}{% set q = 5 %}{% endif %}{{ q }}", "{% if yes: %}a{% endif %}",
    "{% set a, b = 1, 2 %}{{ a }}{{ b }}", "{% set (a, b) = (1, 2) %}{{ a }}", "{% set a = 1, %}{{ a }}", "{% set a %}x{{ n }}{% endset %}[{{ a }}]", "{% set a | upper | replace('X', 'y') %}x{{ n }}{% endset %}{{ a }}", "{% set a, b = [1] %}", "{% set true = 1 %}", "{% set a = b = 1 %}", "{% set a %}{% set b = 1 %}{% endset %}{{ b is defined }}",
    "{% with a = 1, b = a %}{{ a }}{{ b }}{% endwith %}{{ a is defined }}", "{% with %}{% set a = 1 %}{{ a }}{% endwith %}{{ a is defined }}", "{% set a = 1 %}{% with a = 2 %}{{ a }}{% set a = 3 %}{{ a }}{% endwith %}{{ a }}",
    "{% macro m(a, b=2) %}{{ a }}-{{ b }};{% endmacro %}{{ m(1) }}{{ m(1, 3) }}{{ m(b=4, a=5) }}{{ m() }}", "{% macro m(a) %}{% endmacro %}{{ m(1, 2) }}", "{% macro m(a) %}{% endmacro %}{{ m(z=2) }}", "{% macro m() %}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}", "{% macro m(a, b=a) %}{{ a }}{{ b }}{% endmacro %}{{ m(1) }}", "{% macro m() %}{{ x9 }}{% endmacro %}{% set x9 = 5 %}{{ m() }}", "{% macro m() %}{% set q = 1 %}{{ q }}{% endmacro %}{{ m() }}{{ q is defined }}",
    "{% macro f(k) %}{% if k > 0 %}{{ k }}{{ f(k - 1) }}{% endif %}{% endmacro %}{{ f(3) }}", "{% macro m() %}{{ caller() }}!{% endmacro %}{% call m() %}in{% endcall %}", "{% macro m() %}{{ caller(1, 2) }}{% endmacro %}{% call(a, b=3, c=4) m() %}{{ a }}{{ b }}{{ c }}{% endcall %}", "{% macro m() %}{{ caller is defined }}{% endmacro %}{{ m() }}", "{% macro m() %}x{% endmacro %}{% call m() %}in{% endcall %}", "{% macro m(a) %}[{{ a }}]{% endmacro %}{{ m('x') | upper }}{{ m(m(1)) }}", "{{ m() }}{% macro m() %}x{% endmacro %}", "{% macro m(a, b) %}{{ a }}{{ b }}{% endmacro %}{{ m(*[1, 2]) }}{{ m(**{'a': 3, 'b': 4}) }}", "{% macro m(a=1, b) %}{% endmacro %}", "{% macro m(a) %}{{ a is defined }}{% endmacro %}{{ m() }}", "{% macro m() %}a\n  b\n{% endmacro %}[{{ m() }}]",
    "{% for i in l %}{% macro m() %}{{ i }}{% endmacro %}{{ m() }}{% endfor %}", "{% macro m() %}{{ loop is defined }}{% endmacro %}{% for i in l %}{{ m() }}{% endfor %}", "{% macro m(messages) %}{{ messages | length }}{% endmacro %}{{ m([]) }}{{ messages | length }}",
    "{% filter upper %}a{{ s }}b{% endfilter %}", "{% filter replace('a', 'b') | upper %}aa{% endfilter %}", "{% block b %}x{{ n }}{% endblock %}", "{% block b %}{% endblock b %}y", "{% generation %}a{{ n }}{% endgeneration %}b", "a\n{% generation %}\nb\n{% endgeneration %}\nc", "{% generation %}{% set q = 1 %}{% endgeneration %}{{ q is defined }}", "{%- generation -%} x {%- endgeneration -%} y", "{% generation %}", "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}",
    "{% print n %}", "{% print n, s %}", "{% include 'x' %}", "{% import 'x' as y %}", "{% extends 'x' %}", "{% if no %}{% include 'x' %}{% endif %}ok", "{% nope %}", "{% endif %}", "{% if yes %}", "{{ n", "{{ }}", "{% %}", "{% set %}", "{{ n n }}", "{{ (1 }}", "{{ [1 }}", "{{ 1 + }}", "{{ 'a }}", "{% if %}{% endif %}", "{% for %}{% endfor %}", "{# a", "{% raw %}", "{{ n | }}", "{{ n is }}", "{{ f( }}", "{{ $ }}", "{{ a b }}", "{{ 1 2 }}", "{% do 1 %}", "{{ not }}", "{{ n. }}", "{{ n.5x }}", "{{ x ! }}", "{% autoescape true %}{{ n }}{% endautoescape %}",
    "{{ raise_exception('no') }}", "{{ strftime_now('%d %b %Y') }}", "{{ strftime_now('%Y-%m-%d %H:%M') }}", "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{{ c.reset() }}{{ c.next() }}", "{% set j = joiner(',') %}{{ j() }}a{{ j() }}b{{ j() }}", "{% set j = joiner() %}{{ j() }}{{ j() }}", "{{ cycler() }}", "{{ lipsum is defined }}",
    "{{ messages[0]['role'] }}{{ messages[-1].content | trim }}", "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '\\n' }}{% endfor %}", "{{ messages | map(attribute='role') | join(',') }}", "{% set system = messages[0].content if messages[0].role == 'system' else none %}{{ system }}", "{{ messages[1:] | length }}{{ messages[1:][0].role }}", "{{ tools is defined and tools is not none }}", "{% if messages[0]['role'] == 'user' and not (messages | length) % 2 %}ok{% endif %}", "{{ (messages | last).content.strip() }}", "{{ messages[0] | tojson }}", "{{ messages[0] }}", "{{ messages[0].items() | list }}", "{{ messages[0].get('x', 'y') }}", "{{ 'role' in messages[0] }}", "{{ messages[5].role }}", "{{ messages[0].tool_calls }}{{ messages[0].tool_calls is defined }}", "{{ messages[0].tool_calls[0] }}", "{{ '%s' | format(messages[0].role) }}", "{%- for m in messages -%}{%- if loop.first -%}F{%- elif loop.last -%}L{%- endif -%}{%- endfor -%}",
    "{{ s.split(', ')[-1].strip() }}", "{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}", "{% set content = ' x ' %}{% if '</think>' in content %}{% set content = 'y' %}{% endif %}{{ content }}", "{{ [1, 2, 3].items }}x", "{{ d.items is defined }}", "{{ l.append(1) }}", "{{ l.append }}", "{{ d['pop'] is defined }}", "{{ s.__class__ }}x", "{{ s.__class__.x }}", "{{ ''.format }}" if False else "{{ 1.5.x }}",
    "{{ [l, l] == [l, l] }}", "{{ nothing ~ '' }}", "{{ [undefined_a] }}", "{{ {'a': undefined_a} }}", "{{ [undefined_a, 1] | length }}", "{{ undefined_a or 'x' }}", "{{ undefined_a and 'x' }}|", "{{ (undefined_a, ) }}", "{{ undefined_a | default(undefined_b) }}|", "{{ dict(a=undefined_a) }}", "{{ d.items() }}", "{{ (1, (2,), []) }}", "{{ 'it\\'s' }} {{ ['it\\'s', 'a\"b', '\\'\"'] }}", "{{ ['\\n\\t\\x00\\x7f\\u00ad\\u200b é'] }}", "{{ [1.0, -0.0, 1e-5, 1e16, 123456.789] }}", "{{ 1e15 }} {{ 1e16 }} {{ 0.0001 }} {{ 0.00001 }} {{ 1.0 }} {{ 100000000000000000000.0 }}", "{{ -0.0 }} {{ 1e308 * 10 }} {{ -(1e308 * 10) }}", "{{ 10 ** 20 }} {{ 2 ** 100 }}", "{{ 9007199254740993 }} {{ 9007199254740993 / 1 }}",
]


def rows():
    for name, parts in (("expression", expressions()), ("filter", filters())):
        for part in parts:
            part = part.replace("\x00", "|").strip()
            if part:
                yield "{{ " + part + " }}"
    yield from TEMPLATES


def main():
    env = environment()
    out = []
    for template in dict.fromkeys(rows()):
        row = {"template": template}
        try:
            row["expected"] = env.from_string(template).render(**CONTEXT)
        except Exception as error:
            row["error"] = f"{type(error).__name__}: {error}"
        # Addresses of objects are of one run; a text of them is no result.
        if " at 0x" not in row.get("expected", ""):
            out.append(row)
    head = json.dumps({"jinja2": jinja2.__version__, "context": CONTEXT}, ensure_ascii=False)
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in out)
    sys.stdout.write(f'{head[:-1]}, "rows": [\n{lines}\n]}}\n')


main()
