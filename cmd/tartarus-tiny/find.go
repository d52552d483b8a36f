package main

import (
	"bufio"
	"errors"
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
