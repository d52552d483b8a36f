package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var searchApplets = map[string]applet{
	"grep": grep(""), "egrep": grep("E"), "fgrep": grep("F"), "find": find, "xargs": xargs,
}

// basicToExtended turns a basic regular expression into an extended one: \( and ( change places.
func basicToExtended(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && i+1 < len(s):
			i++
			if strings.IndexByte("(){}|+?", s[i]) < 0 {
				b.WriteByte('\\')
			}
			b.WriteByte(s[i])
		case strings.IndexByte("(){}|+?", c) >= 0:
			b.WriteByte('\\')
			b.WriteByte(c)
		default:
			b.WriteByte(c)
		}
	}
	return b.String()
}

type grepper struct {
	*options
	re            *regexp.Regexp
	out           *bufio.Writer
	names         bool
	before, after int
	found         bool
}

func grep(variant string) applet {
	return func(args []string) error {
		o, err := parse("EFGPivnclLoqshHrRwxae:f:m:A:B:C:z", args, "ignore-case=i", "invert-match=v", "count=c", "recursive=r",
			"line-number=n", "only-matching=o", "quiet=q", "word-regexp=w", "fixed-strings=F", "extended-regexp=E", "color=a")
		if err != nil {
			return err
		}
		g := &grepper{options: o, out: bufio.NewWriter(os.Stdout)}
		defer g.out.Flush()
		if err := g.compile(variant); err != nil {
			return err
		}
		for _, flag := range []string{"A", "B", "C"} {
			n, err := strconv.Atoi(o.value[flag])
			if o.has(flag) && err != nil {
				return usage("-%s needs a number", flag)
			}
			if flag != "B" {
				g.after = max(g.after, n)
			}
			if flag != "A" {
				g.before = max(g.before, n)
			}
		}
		recursive := o.has("r") || o.has("R")
		if recursive && len(o.rest) == 0 {
			o.rest = []string{"."}
		}
		g.names = (len(o.rest) > 1 || recursive || o.has("H")) && !o.has("h")
		if recursive {
			err = each("grep", o.rest, g.tree)
		} else {
			err = input("grep", o.rest, g.file)
		}
		switch {
		case err != nil && !(g.found && o.has("q")):
			return exitCode(2)
		case !g.found:
			return exitCode(1)
		}
		return nil
	}
}

func (g *grepper) compile(variant string) error {
	patterns := g.value["e"]
	if file := g.value["f"]; file != "" {
		b, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		patterns = strings.TrimSuffix(string(b), "\n")
	}
	if !g.has("e") && !g.has("f") {
		if len(g.rest) == 0 {
			return usage("grep [-EFivnclLoqhHrwx] PATTERN [FILE]...")
		}
		patterns, g.rest = g.rest[0], g.rest[1:]
	}
	var alts []string
	for p := range strings.SplitSeq(patterns, "\n") {
		switch {
		case g.has("F") || variant == "F":
			p = regexp.QuoteMeta(p)
		case !g.has("E") && !g.has("P") && variant != "E":
			p = basicToExtended(p)
		}
		alts = append(alts, "(?:"+p+")")
	}
	expr := strings.Join(alts, "|")
	switch {
	case g.has("x"):
		expr = "^(?:" + expr + ")$"
	case g.has("w"):
		expr = `\b(?:` + expr + `)\b`
	}
	if g.has("i") {
		expr = "(?i)" + expr
	}
	re, err := regexp.Compile(expr)
	if err != nil {
		return usage("%s: bad pattern", patterns)
	}
	g.re = re
	return nil
}

func (g *grepper) tree(root string) error {
	return filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(p)
		if err != nil {
			exit("grep", err)
			return nil
		}
		defer f.Close()
		return g.file(p, f)
	})
}

func (g *grepper) file(name string, r io.Reader) error {
	if name == "-" {
		name = "(standard input)"
	}
	limit := -1
	if g.has("m") {
		limit, _ = strconv.Atoi(g.value["m"])
	}
	n, count, trailing, last := 0, 0, 0, 0
	var held [][]byte
	binary := false
	show := func(line []byte, n int, sep byte) {
		if g.names {
			fmt.Fprintf(g.out, "%s%c", name, sep)
		}
		if g.has("n") {
			fmt.Fprintf(g.out, "%d%c", n, sep)
		}
		g.out.Write(line)
		g.out.WriteByte('\n')
		last = n
	}
	quiet := g.has("q") || g.has("l") || g.has("L") || g.has("c")
	err := lines(r, func(line []byte) bool {
		n++
		binary = binary || bytes.IndexByte(line, 0) >= 0 && !g.has("a")
		if g.re.Match(line) == g.has("v") {
			switch {
			case quiet || binary:
			case trailing > 0:
				trailing--
				show(line, n, '-')
			case g.before > 0:
				if held = append(held, line); len(held) > g.before {
					held = held[1:]
				}
			}
			return true
		}
		count++
		g.found = true
		switch {
		case quiet:
			return !g.has("q") && !g.has("l") && !g.has("L") && count != limit
		case binary:
			fmt.Fprintf(g.out, "Binary file %s matches\n", name)
			return false
		case g.has("o") && !g.has("v"):
			for _, m := range g.re.FindAll(line, -1) {
				if len(m) > 0 {
					show(m, n, ':')
				}
			}
		default:
			if (g.before > 0 || g.after > 0) && last > 0 && n-len(held) > last+1 {
				g.out.WriteString("--\n")
			}
			for i, h := range held {
				show(h, n-len(held)+i, '-')
			}
			held, trailing = nil, g.after
			show(line, n, ':')
		}
		return count != limit
	})
	switch {
	case g.has("c"):
		if g.names {
			fmt.Fprintf(g.out, "%s:", name)
		}
		fmt.Fprintln(g.out, count)
	case g.has("l") && count > 0, g.has("L") && count == 0:
		fmt.Fprintln(g.out, name)
	}
	return err
}

// test is one primary of find; it may also act.
type test func(p string, info fs.FileInfo) bool

func find(args []string) error {
	var roots []string
	for len(args) > 0 && !strings.HasPrefix(args[0], "-") && args[0] != "(" && args[0] != "!" {
		roots, args = append(roots, args[0]), args[1:]
	}
	if len(roots) == 0 {
		roots = []string{"."}
	}
	f := &finder{maxDepth: 1 << 30, args: args, out: bufio.NewWriter(os.Stdout)}
	defer f.out.Flush()
	expr, err := f.or()
	if err != nil {
		return err
	}
	if len(f.args) > 0 {
		return usage("%s: unexpected", f.args[0])
	}
	if !f.acts {
		all := expr
		expr = func(p string, i fs.FileInfo) bool { return all(p, i) && f.print(p, '\n') }
	}
	err = each("find", roots, func(root string) error { return f.walk(root, 0, expr) })
	if len(f.batch) > 0 {
		f.run(append(f.batchCmd, f.batch...))
	}
	return err
}

type finder struct {
	args               []string
	out                *bufio.Writer
	acts, depth, prune bool
	minDepth, maxDepth int
	batchCmd, batch    []string
}

func (f *finder) walk(p string, level int, expr test) error {
	info, err := os.Lstat(p)
	if err != nil {
		return err
	}
	f.prune = false
	if !f.depth && level >= f.minDepth {
		expr(p, info)
	}
	if info.IsDir() && level < f.maxDepth && !f.prune {
		entries, readErr := os.ReadDir(p)
		if readErr != nil {
			exit("find", readErr)
			err = exitCode(1)
		}
		for _, e := range entries {
			if sub := f.walk(strings.TrimSuffix(p, "/")+"/"+e.Name(), level+1, expr); sub != nil && !errors.Is(sub, fs.ErrNotExist) {
				err = exitCode(1)
			}
		}
	}
	if f.depth && level >= f.minDepth {
		expr(p, info)
	}
	return err
}

func (f *finder) print(p string, end byte) bool {
	f.out.WriteString(p)
	return f.out.WriteByte(end) == nil
}

func (f *finder) run(argv []string) bool {
	f.out.Flush()
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	err := cmd.Run()
	if err != nil && cmd.ProcessState == nil {
		exit("find", err)
	}
	return err == nil
}

func (f *finder) peek() string {
	if len(f.args) == 0 {
		return ""
	}
	return f.args[0]
}

func (f *finder) or() (test, error) {
	left, err := f.and()
	for err == nil && (f.peek() == "-o" || f.peek() == "-or") {
		f.args = f.args[1:]
		a := left
		var b test
		if b, err = f.and(); err == nil {
			left = func(p string, i fs.FileInfo) bool { return a(p, i) || b(p, i) }
		}
	}
	return left, err
}

func (f *finder) and() (test, error) {
	left := test(func(string, fs.FileInfo) bool { return true })
	for len(f.args) > 0 && f.peek() != ")" && f.peek() != "-o" && f.peek() != "-or" {
		next, err := f.primary()
		if err != nil {
			return nil, err
		}
		a := left
		left = func(p string, i fs.FileInfo) bool { return a(p, i) && next(p, i) }
	}
	return left, nil
}

func (f *finder) primary() (test, error) {
	name := f.args[0]
	f.args = f.args[1:]
	yes := func(string, fs.FileInfo) bool { return true }
	switch name {
	case "-a", "-and":
		return yes, nil
	case "!", "-not":
		if len(f.args) == 0 {
			return nil, usage("%s needs an expression", name)
		}
		t, err := f.primary()
		return func(p string, i fs.FileInfo) bool { return !t(p, i) }, err
	case "(":
		t, err := f.or()
		if err == nil && f.peek() != ")" {
			err = usage("a bracket is not closed")
		}
		f.args = f.args[min(1, len(f.args)):]
		return t, err
	case "-print", "-print0":
		f.acts = true
		end := map[string]byte{"-print": '\n', "-print0": 0}[name]
		return func(p string, _ fs.FileInfo) bool { return f.print(p, end) }, nil
	case "-depth":
		f.depth = true
		return yes, nil
	case "-delete":
		f.acts, f.depth = true, true
		return func(p string, _ fs.FileInfo) bool { return exit("find", os.Remove(p)) == 0 }, nil
	case "-prune":
		return func(string, fs.FileInfo) bool { f.prune = true; return true }, nil
	case "-empty":
		return func(p string, i fs.FileInfo) bool {
			if i.IsDir() {
				entries, err := os.ReadDir(p)
				return err == nil && len(entries) == 0
			}
			return i.Mode().IsRegular() && i.Size() == 0
		}, nil
	case "-exec":
		return f.exec()
	}
	if len(f.args) == 0 {
		return nil, usage("%s: unknown, or needs a value", name)
	}
	value := f.args[0]
	f.args = f.args[1:]
	return f.valued(name, value)
}

func (f *finder) exec() (test, error) {
	f.acts = true
	var cmd []string
	for len(f.args) > 0 {
		arg := f.args[0]
		f.args = f.args[1:]
		switch {
		case arg == ";":
			return func(p string, _ fs.FileInfo) bool {
				argv := make([]string, len(cmd))
				for i, a := range cmd {
					argv[i] = strings.ReplaceAll(a, "{}", p)
				}
				return f.run(argv)
			}, nil
		case arg == "+" && len(cmd) > 1 && cmd[len(cmd)-1] == "{}":
			f.batchCmd = cmd[:len(cmd)-1]
			return func(p string, _ fs.FileInfo) bool {
				if f.batch = append(f.batch, p); len(f.batch) >= 1000 {
					f.run(append(f.batchCmd[:len(f.batchCmd):len(f.batchCmd)], f.batch...))
					f.batch = nil
				}
				return true
			}, nil
		}
		cmd = append(cmd, arg)
	}
	return nil, usage("-exec is not closed with ;")
}

func (f *finder) valued(name, value string) (test, error) {
	glob := func(fold bool, pick func(string) string) (test, error) {
		pattern := value
		if fold {
			pattern = strings.ToLower(value)
		}
		if _, err := path.Match(pattern, ""); err != nil {
			return nil, usage("%s: bad pattern", value)
		}
		return func(p string, _ fs.FileInfo) bool {
			text := pick(p)
			if fold {
				text = strings.ToLower(text)
			}
			ok, _ := path.Match(pattern, text)
			return ok
		}, nil
	}
	switch name {
	case "-name", "-iname":
		return glob(name == "-iname", filepath.Base)
	case "-path", "-wholename", "-ipath":
		// A star of -path crosses slashes; path.Match's does not.
		expr := regexp.QuoteMeta(value)
		expr = strings.NewReplacer(`\*`, ".*", `\?`, ".", `\[`, "[", `\]`, "]").Replace(expr)
		re, err := regexp.Compile(map[bool]string{true: "(?i)"}[name == "-ipath"] + "^" + expr + "$")
		if err != nil {
			return nil, usage("%s: bad pattern", value)
		}
		return func(p string, _ fs.FileInfo) bool { return re.MatchString(p) }, nil
	case "-type":
		return func(_ string, i fs.FileInfo) bool {
			k := modeString(i.Mode())[:1]
			return strings.Contains(value, strings.Replace(k, "-", "f", 1))
		}, nil
	case "-maxdepth", "-mindepth":
		n, err := strconv.Atoi(value)
		if err != nil {
			return nil, usage("%s needs a number", name)
		}
		if name == "-maxdepth" {
			f.maxDepth = n
		} else {
			f.minDepth = n
		}
		return func(string, fs.FileInfo) bool { return true }, nil
	case "-user":
		return func(_ string, i fs.FileInfo) bool {
			uid := int(i.Sys().(*syscall.Stat_t).Uid)
			return userName(uid) == value || strconv.Itoa(uid) == value
		}, nil
	case "-perm":
		want, err := strconv.ParseUint(strings.TrimLeft(value, "-/"), 8, 12)
		if err != nil {
			return nil, usage("-perm needs an octal mode")
		}
		return func(_ string, i fs.FileInfo) bool {
			mode := uint64(i.Sys().(*syscall.Stat_t).Mode & 0o7777)
			switch value[0] {
			case '-':
				return mode&want == want
			case '/':
				return mode&want != 0
			}
			return mode == want
		}, nil
	case "-newer":
		ref, err := os.Stat(value)
		return func(_ string, i fs.FileInfo) bool { return i.ModTime().After(ref.ModTime()) }, err
	case "-size", "-mtime", "-mmin":
		return compared(name, value)
	}
	return nil, usage("%s: unknown", name)
}

// compared handles the +n, -n and n of -size, -mtime and -mmin.
func compared(name, value string) (test, error) {
	unit := int64(512)
	number := strings.TrimLeft(value, "+-")
	if name == "-size" && number != "" {
		if u, ok := map[byte]int64{'c': 1, 'k': 1 << 10, 'M': 1 << 20, 'G': 1 << 30, 'b': 512}[number[len(number)-1]]; ok {
			unit, number = u, number[:len(number)-1]
		}
	}
	n, err := strconv.ParseInt(number, 10, 62)
	if err != nil {
		return nil, usage("%s needs a number", name)
	}
	return func(_ string, i fs.FileInfo) bool {
		var have int64
		switch name {
		case "-size":
			have = (i.Size() + unit - 1) / unit
		case "-mtime":
			have = int64(time.Since(i.ModTime()).Hours() / 24)
		default:
			have = int64(time.Since(i.ModTime()).Minutes())
		}
		switch value[0] {
		case '+':
			return have > n
		case '-':
			return have < n
		}
		return have == n
	}, nil
}

func xargs(args []string) error {
	o, err := parseLeading("0rtn:I:P:L:d:", args, "null=0", "no-run-if-empty=r", "max-args=n", "max-procs=P")
	if err != nil {
		return err
	}
	cmd := o.rest
	if len(cmd) == 0 {
		cmd = []string{"echo"}
	}
	in, err := io.ReadAll(os.Stdin)
	if err != nil {
		return err
	}
	var words []string
	switch {
	case o.has("0"):
		words = strings.FieldsFunc(string(in), func(r rune) bool { return r == 0 })
	case o.has("d"):
		words = strings.Split(strings.TrimSuffix(string(in), "\n"), strings.NewReplacer(`\n`, "\n", `\t`, "\t").Replace(o.value["d"]))
	case o.has("I"), o.has("L"):
		for line := range strings.Lines(string(in)) {
			if line = strings.TrimSpace(line); line != "" {
				words = append(words, line)
			}
		}
	default:
		words = shellWords(string(in))
	}
	n := 1000
	if o.has("n") || o.has("L") {
		if n, err = strconv.Atoi(o.value["n"] + o.value["L"]); err != nil || n < 1 {
			return usage("-n needs a number above 0")
		}
	}
	var code error
	run := func(argv []string) {
		if o.has("t") {
			fmt.Fprintln(os.Stderr, strings.Join(argv, " "))
		}
		c := exec.Command(argv[0], argv[1:]...)
		c.Stdout, c.Stderr = os.Stdout, os.Stderr
		if err := c.Run(); err != nil {
			code = exitCode(123)
			if c.ProcessState == nil {
				exit("xargs", err)
				code = exitCode(127)
			}
		}
	}
	if mark, ok := o.value["I"]; ok {
		for _, w := range words {
			argv := make([]string, len(cmd))
			for i, a := range cmd {
				argv[i] = strings.ReplaceAll(a, mark, w)
			}
			run(argv)
		}
		return code
	}
	if len(words) == 0 && !o.has("r") {
		run(cmd)
	}
	for len(words) > 0 {
		part := words[:min(n, len(words))]
		words = words[len(part):]
		run(append(cmd[:len(cmd):len(cmd)], part...))
	}
	return code
}

// shellWords splits at white space, minding quotes and backslashes.
func shellWords(s string) []string {
	var out []string
	var word strings.Builder
	started, quote, escaped := false, rune(0), false
	for _, c := range s {
		switch {
		case escaped:
			word.WriteRune(c)
			escaped = false
		case quote != 0 && c == quote:
			quote = 0
		case quote != 0:
			word.WriteRune(c)
		case c == '\\':
			escaped, started = true, true
		case c == '\'' || c == '"':
			quote, started = c, true
		case c == ' ' || c == '\t' || c == '\n' || c == '\r':
			if started {
				out = append(out, word.String())
				word.Reset()
			}
			started = false
		default:
			word.WriteRune(c)
			started = true
		}
	}
	if started {
		out = append(out, word.String())
	}
	return out
}
