package config

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"strings"

	"go.yaml.in/yaml/v4"
)

// maxSecret is longer than any password, and than a private key.
const maxSecret = 64 << 10

// secret fetches what a node names, from a file or the environment, and is a node that holds it; nil after a mistake.
func (d *decoding) secret(n *yaml.Node, path, source string) *yaml.Node {
	if n.Kind != yaml.ScalarNode {
		d.mistake(n, path, "wants one value")
		return nil
	}
	held := &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Style: yaml.DoubleQuotedStyle, Line: n.Line, Column: n.Column}
	if source == "_env" {
		if held.Value = d.kit.Getenv(n.Value); held.Value == "" {
			d.mistake(n, path, "the environment has no %s", quote(n.Value))
			return nil
		}
		return held
	}
	value, shared, err := readSecret(d.path(n.Value))
	if err != nil {
		d.mistake(n, path, "%s: %v", n.Value, err)
		return nil
	}
	if shared {
		d.warnings = append(d.warnings, d.at(n, "%s%s: every user of this board can read %s; chmod 600 it", d.label, path, n.Value))
	}
	held.Value = value
	return held
}

// readSecret is the content of a file without its last line end. shared says whether every user may read it.
func readSecret(path string) (value string, shared bool, err error) {
	defer func() {
		if e, ok := errors.AsType[*fs.PathError](err); ok {
			err = e.Err // the caller names the file
		}
	}()
	info, err := os.Stat(path) // before opening, which would wait at a pipe
	if err != nil {
		return "", false, err
	}
	if !info.Mode().IsRegular() {
		return "", false, errors.New("is not a file")
	}
	f, err := os.Open(path)
	if err != nil {
		return "", false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxSecret+1))
	if err != nil {
		return "", false, err
	}
	value = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	switch {
	case len(b) > maxSecret:
		return "", false, errors.New("is too long for a secret")
	case value == "":
		return "", false, errors.New("is empty")
	}
	return value, info.Mode().Perm()&0o004 != 0, nil
}
