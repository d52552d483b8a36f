package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

var fileApplets = map[string]applet{
	"ls": list, "ln": link, "rmdir": rmdir, "chmod": chmod, "chown": chown, "chgrp": chown, "readlink": readlink,
	"realpath": realpath, "basename": basename, "dirname": dirname, "stat": stat, "du": du, "df": df, "dd": dd,
	"tee": tee, "mkfifo": mkfifo, "pwd": pwd, "truncate": truncate, "sync": func([]string) error { unix.Sync(); return nil },
}

// each runs do for every path and goes on after an error, which decides the exit code.
func each(name string, paths []string, do func(string) error) error {
	var code exitCode
	for _, p := range paths {
		if err := do(p); err != nil {
			code = exitCode(exit(name, err))
		}
	}
	if code != 0 {
		return code
	}
	return nil
}

func link(args []string) error {
	o, err := parse("sfnvrT", args, "symbolic=s", "force=f")
	if err != nil {
		return err
	}
	if len(o.rest) == 1 {
		o.rest = append(o.rest, ".")
	}
	if len(o.rest) < 2 {
		return usage("ln [-sfn] TARGET... LINK")
	}
	to := o.rest[len(o.rest)-1]
	info, err := os.Stat(to)
	if o.has("n") || o.has("T") {
		info, err = os.Lstat(to)
	}
	into := err == nil && info.IsDir() && !o.has("T")
	if len(o.rest) > 2 && !into {
		return fmt.Errorf("%s: not a directory", to)
	}
	return each("ln", o.rest[:len(o.rest)-1], func(target string) error {
		name := to
		if into {
			name = filepath.Join(to, filepath.Base(target))
		}
		if o.has("f") {
			os.Remove(name)
		}
		if o.has("s") {
			return os.Symlink(target, name)
		}
		return os.Link(target, name)
	})
}

func rmdir(args []string) error {
	o, err := parse("p", args)
	if err != nil {
		return err
	}
	return each("rmdir", o.rest, func(p string) error {
		for {
			if err := unix.Rmdir(p); err != nil {
				return &fs.PathError{Op: "rmdir", Path: p, Err: err}
			}
			if p = filepath.Dir(p); !o.has("p") || p == "." || p == "/" {
				return nil
			}
		}
	})
}

// walk runs do for path and, when recursive, for all that is below it.
func walk(path string, recursive bool, do func(string, fs.FileInfo) error) error {
	if !recursive {
		info, err := os.Stat(path)
		if err != nil {
			return err
		}
		return do(path, info)
	}
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		return do(p, info)
	})
}

func chmod(args []string) error {
	// A mode such as -x looks like a flag.
	var flags, rest []string
	for _, a := range args {
		if len(rest) == 0 && (a == "-R" || a == "--recursive" || a == "-f" || a == "-v") {
			flags = append(flags, a)
		} else {
			rest = append(rest, a)
		}
	}
	if len(rest) < 2 {
		return usage("chmod [-R] MODE FILE...")
	}
	return each("chmod", rest[1:], func(path string) error {
		return walk(path, slices.Contains(flags, "-R") || slices.Contains(flags, "--recursive"), func(p string, info fs.FileInfo) error {
			if info.Mode()&fs.ModeSymlink != 0 {
				return nil
			}
			old := uint32(info.Sys().(*syscall.Stat_t).Mode) & 0o7777
			mode, err := changeMode(old, rest[0], info.IsDir())
			if err != nil {
				return err
			}
			if err := unix.Chmod(p, mode); err != nil {
				return &fs.PathError{Op: "chmod", Path: p, Err: err}
			}
			return nil
		})
	})
}

// changeMode applies 4755 or u+x,go-w to a mode.
func changeMode(mode uint32, change string, dir bool) (uint32, error) {
	if n, err := strconv.ParseUint(change, 8, 12); err == nil {
		return uint32(n), nil
	}
	for clause := range strings.SplitSeq(change, ",") {
		at := strings.IndexAny(clause, "+-=")
		if at < 0 {
			return 0, usage("%s: bad mode", change)
		}
		who, op, perms := clause[:at], clause[at], clause[at+1:]
		var mask, bits uint32
		if who == "" || strings.Contains(who, "a") {
			who = "ugo"
		}
		for _, w := range who {
			shift := strings.IndexRune("ogu", w) * 3
			if shift < 0 {
				return 0, usage("%s: bad mode", change)
			}
			mask |= 7 << shift
			for _, p := range perms {
				switch p {
				case 'r':
					bits |= 4 << shift
				case 'w':
					bits |= 2 << shift
				case 'x':
					bits |= 1 << shift
				case 'X':
					if dir || mode&0o111 != 0 {
						bits |= 1 << shift
					}
				case 's':
					bits |= map[rune]uint32{'u': 0o4000, 'g': 0o2000}[w]
				case 't':
					bits |= 0o1000
				default:
					return 0, usage("%s: bad mode", change)
				}
			}
		}
		switch op {
		case '+':
			mode |= bits
		case '-':
			mode &^= bits
		case '=':
			mode = mode&^mask | bits
		}
	}
	return mode, nil
}

func chown(args []string) error {
	o, err := parse("RhvfL", args, "recursive=R")
	if err != nil {
		return err
	}
	if len(o.rest) < 2 {
		return usage("chown [-R] USER[:GROUP] FILE...")
	}
	owner, group, both := strings.Cut(o.rest[0], ":")
	if strings.HasPrefix(filepath.Base(os.Args[0]), "chgrp") || len(os.Args) > 1 && os.Args[1] == "chgrp" {
		owner, group, both = "", o.rest[0], true
	}
	uid, gid := -1, -1
	if owner != "" {
		if uid, err = strconv.Atoi(owner); err != nil {
			u, err := user.Lookup(owner)
			if err != nil {
				return fmt.Errorf("%s: no such user", owner)
			}
			uid, _ = strconv.Atoi(u.Uid)
			if both && group == "" {
				group = u.Gid
			}
		}
	}
	if group != "" {
		if gid, err = strconv.Atoi(group); err != nil {
			g, err := user.LookupGroup(group)
			if err != nil {
				return fmt.Errorf("%s: no such group", group)
			}
			gid, _ = strconv.Atoi(g.Gid)
		}
	}
	return each("chown", o.rest[1:], func(path string) error {
		return walk(path, o.has("R"), func(p string, _ fs.FileInfo) error {
			if o.has("R") || o.has("h") {
				return os.Lchown(p, uid, gid)
			}
			return os.Chown(p, uid, gid)
		})
	})
}

func readlink(args []string) error {
	o, err := parse("fen", args)
	if err != nil {
		return err
	}
	if o.has("f") || o.has("e") {
		return realpath(o.rest)
	}
	return each("readlink", o.rest, func(p string) error {
		target, err := os.Readlink(p)
		if err != nil {
			return exitCode(1)
		}
		fmt.Println(target)
		return nil
	})
}

func realpath(args []string) error {
	return each("realpath", args, func(p string) error {
		abs, err := filepath.Abs(p)
		if err != nil {
			return err
		}
		// The last part need not exist.
		dir, err := filepath.EvalSymlinks(filepath.Dir(abs))
		if err != nil {
			return err
		}
		full := filepath.Join(dir, filepath.Base(abs))
		if there, err := filepath.EvalSymlinks(full); err == nil {
			full = there
		}
		fmt.Println(full)
		return nil
	})
}

func basename(args []string) error {
	if len(args) == 0 || len(args) > 2 {
		return usage("basename PATH [SUFFIX]")
	}
	base := filepath.Base(args[0])
	if len(args) == 2 && base != args[1] {
		base = strings.TrimSuffix(base, args[1])
	}
	fmt.Println(base)
	return nil
}

func dirname(args []string) error {
	if len(args) == 0 {
		return usage("dirname PATH...")
	}
	for _, p := range args {
		fmt.Println(filepath.Dir(strings.TrimRight(p, "/") + strings.Repeat("/", btoi(strings.Trim(p, "/") == "" && p != ""))))
	}
	return nil
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

func mkfifo(args []string) error {
	return each("mkfifo", args, func(p string) error {
		if err := unix.Mkfifo(p, 0o666); err != nil {
			return &fs.PathError{Op: "mkfifo", Path: p, Err: err}
		}
		return nil
	})
}

func pwd([]string) error {
	wd, err := os.Getwd()
	if err == nil {
		fmt.Println(wd)
	}
	return err
}

func truncate(args []string) error {
	o, err := parse("s:c", args, "size=s")
	if err != nil {
		return err
	}
	size, err := parseSize(o.value["s"])
	if err != nil {
		return err
	}
	return each("truncate", o.rest, func(p string) error {
		f, err := os.OpenFile(p, os.O_WRONLY|os.O_CREATE, 0o666)
		if err != nil {
			return err
		}
		defer f.Close()
		return f.Truncate(size)
	})
}

func tee(args []string) error {
	o, err := parse("ai", args, "append=a")
	if err != nil {
		return err
	}
	writers := []io.Writer{os.Stdout}
	mode := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if o.has("a") {
		mode = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	err = each("tee", o.rest, func(p string) error {
		f, err := os.OpenFile(p, mode, 0o666)
		if err == nil {
			writers = append(writers, f)
		}
		return err
	})
	if _, copyErr := io.Copy(io.MultiWriter(writers...), os.Stdin); copyErr != nil {
		return copyErr
	}
	return err
}

// parseSize reads 512, 4K, 1M, 2G, and 1kB in the meaning of dd.
func parseSize(s string) (int64, error) {
	number := strings.TrimRight(s, "bBkKmMgGi")
	n, err := strconv.ParseInt(number, 10, 52)
	if err != nil || n < 0 {
		return 0, usage("%q: bad size", s)
	}
	switch strings.ToUpper(s[len(number):]) {
	case "", "B":
		return n, nil
	case "K", "KIB":
		return n << 10, nil
	case "M", "MIB":
		return n << 20, nil
	case "G", "GIB":
		if n < 1<<32 {
			return n << 30, nil
		}
	case "KB":
		return n * 1000, nil
	case "MB":
		return n * 1000_000, nil
	}
	return 0, usage("%q: bad size", s)
}
