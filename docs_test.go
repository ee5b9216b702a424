package gatepost_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"
)

// repoFiles is every file of the project, slash-separated, without what git, make or an editor keep beside them.
func repoFiles(t *testing.T) []string {
	t.Helper()
	var files []string
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == ".git" || path == "bin" || path == "dist"):
			return fs.SkipDir
		case d.Type().IsRegular():
			files = append(files, filepath.ToSlash(path))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

var (
	codeSpan    = regexp.MustCompile("`([^`\n]+)`")
	pathSpan    = regexp.MustCompile(`^[\w.*-]*(/[\w.*-]*)+$|^\w[\w.*-]*\.(go|md|mod|sh|sql|svg|yaml|json|example)$`)
	symbolSpan  = regexp.MustCompile(`^[a-z]\w*(\.\w+){1,2}$`)
	makeSpan    = regexp.MustCompile(`^make( [a-z]+)+$`)
	makeTarget  = regexp.MustCompile(`(?m)^([a-z]+):`)
	atRunTime   = []string{"records.db", "book.db", "config.yaml"} // named, but made elsewhere
	unqualified = regexp.MustCompile(`^[A-Z]\w*[a-z]\w*(\.\w+)*$`)
)

// TestArchitectureIsTrue finds every file and symbol that ARCHITECTURE.md names.
func TestArchitectureIsTrue(t *testing.T) {
	known := symbols(t)
	found := 0
	for _, span := range codeSpan.FindAllStringSubmatch(read(t, "ARCHITECTURE.md"), -1) {
		name := strings.TrimSuffix(span[1], "()")
		switch {
		case slices.Contains(atRunTime, name):
		case pathSpan.MatchString(name):
			found++
			if matches, err := filepath.Glob(name); err != nil || len(matches) == 0 {
				t.Errorf("%s: no such file", name)
			}
		case symbolSpan.MatchString(name):
			found++
			if !known[name] {
				t.Errorf("%s: no such symbol", name)
			}
		case unqualified.MatchString(name):
			t.Errorf("%s: name its package too", name)
		}
	}
	if found < 40 {
		t.Errorf("only %d names found: has the notation changed?", found)
	}
}

// symbols is what the project's packages declare, tests aside, as "package.Name" and "package.Type.Member".
func symbols(t *testing.T) map[string]bool {
	t.Helper()
	known := map[string]bool{}
	for _, f := range parseAll(t, nil) {
		pkg := f.Name.Name + "."
		fields := func(owner string, list *ast.FieldList) {
			for _, field := range list.List {
				for _, name := range field.Names {
					known[owner+"."+name.Name] = true
				}
			}
		}
		for _, decl := range f.Decls {
			switch decl := decl.(type) {
			case *ast.FuncDecl:
				if decl.Recv == nil {
					known[pkg+decl.Name.Name] = true
				} else {
					known[pkg+receiver(decl.Recv.List[0].Type)+"."+decl.Name.Name] = true
				}
			case *ast.GenDecl:
				for _, spec := range decl.Specs {
					switch spec := spec.(type) {
					case *ast.ValueSpec:
						for _, name := range spec.Names {
							known[pkg+name.Name] = true
						}
					case *ast.TypeSpec:
						known[pkg+spec.Name.Name] = true
						switch body := spec.Type.(type) {
						case *ast.StructType:
							fields(pkg+spec.Name.Name, body.Fields)
						case *ast.InterfaceType:
							fields(pkg+spec.Name.Name, body.Methods)
						}
					}
				}
			}
		}
	}
	return known
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}

// parseAll parses the project's Go files by path, tests aside; without keep, all of them.
func parseAll(t *testing.T, keep func(path string) bool) map[string]*ast.File {
	t.Helper()
	parsed := map[string]*ast.File{}
	for _, path := range repoFiles(t) {
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") || keep != nil && !keep(path) {
			continue
		}
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		parsed[path] = f
	}
	return parsed
}

var (
	mdLink  = regexp.MustCompile(`\]\(([^)\s]+)\)|(?:src|href)="([^"]+)"`)
	heading = regexp.MustCompile(`(?m)^#+ +(.+)$`)
)

// TestDocsLinks follows every relative link between the documents, headings included.
func TestDocsLinks(t *testing.T) {
	for _, doc := range repoFiles(t) {
		if !strings.HasSuffix(doc, ".md") {
			continue
		}
		for _, m := range mdLink.FindAllStringSubmatch(read(t, doc), -1) {
			target := m[1] + m[2]
			if strings.Contains(target, ":") {
				continue
			}
			path, fragment, _ := strings.Cut(target, "#")
			file := doc
			if path != "" {
				file = filepath.Join(filepath.Dir(doc), path)
			}
			if _, err := os.Stat(file); err != nil {
				t.Errorf("%s links to %s: %v", doc, target, err)
			} else if fragment != "" && !slices.Contains(anchors(read(t, file)), fragment) {
				t.Errorf("%s links to %s: no such heading", doc, target)
			}
		}
	}
}

// anchors is what GitHub makes of a document's headings.
func anchors(doc string) []string {
	var as []string
	for _, m := range heading.FindAllStringSubmatch(doc, -1) {
		as = append(as, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', unicode.IsLetter(r), unicode.IsDigit(r):
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return as
}

// TestDocsNameRealTargets looks up each "make TARGET" that a document names.
func TestDocsNameRealTargets(t *testing.T) {
	targets := map[string]bool{}
	for _, m := range makeTarget.FindAllStringSubmatch(read(t, "Makefile"), -1) {
		targets[m[1]] = true
	}
	for _, doc := range repoFiles(t) {
		if !strings.HasSuffix(doc, ".md") {
			continue
		}
		for _, span := range codeSpan.FindAllStringSubmatch(read(t, doc), -1) {
			if !makeSpan.MatchString(span[1]) {
				continue
			}
			for _, target := range strings.Fields(span[1])[1:] {
				if !targets[target] {
					t.Errorf("%s says %q: no such target", doc, span[1])
				}
			}
		}
	}
}

// TestReadmeListsAllFamilies holds the README's tables against the folders of drivers and uplinks.
func TestReadmeListsAllFamilies(t *testing.T) {
	readme := read(t, "README.md")
	for _, family := range []string{"drivers", "uplink"} {
		entries, err := os.ReadDir(family)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.IsDir() && !strings.HasSuffix(e.Name(), "test") && !strings.Contains(readme, "`"+family+"/"+e.Name()+"`") {
				t.Errorf("README.md has no row for %s/%s", family, e.Name())
			}
		}
	}
}

// TestNothingOfOneMachine keeps paths of somebody's machine, and keys, out of the project.
func TestNothingOfOneMachine(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	forbidden := regexp.MustCompile(regexp.QuoteMeta(here) + `/|/(home|Users)/[a-z]|/root/[\w.]|BEGIN [A-Z ]*PRIVATE KEY-----\n`)
	for _, path := range repoFiles(t) {
		text := read(t, path)
		if !utf8.ValidString(text) {
			continue
		}
		for i, line := range strings.SplitAfter(text, "\n") {
			if m := forbidden.FindString(line); m != "" {
				t.Errorf("%s:%d holds %q", path, i+1, m)
			}
		}
	}
}

// TestLogKeys holds each key given to slog against the list in CONTRIBUTING.md.
func TestLogKeys(t *testing.T) {
	_, list, ok := strings.Cut(read(t, "CONTRIBUTING.md"), "\n## Log keys\n")
	if !ok {
		t.Fatal("CONTRIBUTING.md lists no log keys")
	}
	list, _, _ = strings.Cut(list, "\n## ")
	allowed := map[string]bool{}
	for _, span := range codeSpan.FindAllStringSubmatch(list, -1) {
		allowed[span[1]] = true
	}
	methods := []string{"Debug", "Info", "Warn", "Error", "With"}
	files := parseAll(t, func(path string) bool { return !strings.HasSuffix(filepath.Dir(path), "test") })
	seen := 0
	for path, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok {
				return true
			}
			method, ok := call.Fun.(*ast.SelectorExpr)
			if !ok || !slices.Contains(methods, method.Sel.Name) || call.Ellipsis.IsValid() {
				return true
			}
			args := call.Args
			if method.Sel.Name != "With" && len(args) > 0 {
				args = args[1:]
			}
			for i := 0; i+1 < len(args); i += 2 {
				lit, ok := args[i].(*ast.BasicLit)
				if !ok {
					continue
				}
				key, err := strconv.Unquote(lit.Value)
				if err != nil {
					continue
				}
				seen++
				if !allowed[key] {
					t.Errorf("%s logs under %q, which CONTRIBUTING.md does not list", path, key)
				}
			}
			return true
		})
	}
	if seen < 20 {
		t.Errorf("only %d keys found: has logging changed?", seen)
	}
}
