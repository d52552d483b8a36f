package main

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
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
