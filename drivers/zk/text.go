package zk

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// encoding is how a terminal spells names and ids.
type encoding string

const (
	encodingUTF8   encoding = "utf-8"
	encodingLatin1 encoding = "latin1"
)

// field is the bytes of b up to a NUL; what follows is left over from older contents.
func field(b []byte) []byte {
	if i := bytes.IndexByte(b, 0); i >= 0 {
		return b[:i]
	}
	return b
}

// text spells b in UTF-8. Bytes that the encoding does not know come as \xHH, and a backslash before an x as \x5c, so that
// different bytes never read alike. odd says that b could not be taken as it is.
func (e encoding) text(b []byte) (s string, odd bool) {
	plain := true
	for _, c := range b {
		if c >= utf8.RuneSelf || c == '\\' {
			plain = false
			break
		}
	}
	if plain {
		return string(b), false
	}
	var t strings.Builder
	for i := 0; i < len(b); {
		c := b[i]
		r, n := utf8.DecodeRune(b[i:])
		switch {
		case c == '\\' && i+1 < len(b) && b[i+1] == 'x':
			t.WriteString(`\x5c`)
			n = 1
		case c < utf8.RuneSelf:
			t.WriteByte(c)
		case e == encodingLatin1:
			t.WriteRune(rune(c))
			n = 1
		case r == utf8.RuneError && n == 1:
			const hex = "0123456789abcdef"
			t.WriteString(`\x`)
			t.WriteByte(hex[c>>4])
			t.WriteByte(hex[c&15])
			odd = true
		default:
			t.Write(b[i : i+n])
		}
		i += n
	}
	return t.String(), odd
}
