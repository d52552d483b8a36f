package main

import (
	"bufio"
	"cmp"
	"errors"
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
	"time"

	"golang.org/x/sys/unix"
)

func list(args []string) error {
	o, err := parse("alAhR1dtrSFinUpgGL", args, "all=a", "color=F", "human-readable=h", "recursive=R", "directory=d")
	if err != nil {
		return err
	}
	if len(o.rest) == 0 {
		o.rest = []string{"."}
	}
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	var files, dirs []string
	var code error
	for _, p := range o.rest {
		info, err := os.Lstat(p)
		if err == nil && info.Mode()&fs.ModeSymlink != 0 && !o.has("l") && !o.has("d") {
			if to, err := os.Stat(p); err == nil {
				info = to
			}
		}
		switch {
		case err != nil:
			code = exitCode(exit("ls", err) + 1)
		case info.IsDir() && !o.has("d"):
			dirs = append(dirs, p)
		default:
			files = append(files, p)
		}
	}
	printList(out, o, "", files)
	for i, d := range dirs {
		if len(o.rest) > 1 || o.has("R") {
			if i > 0 || len(files) > 0 {
				fmt.Fprintln(out)
			}
			fmt.Fprintf(out, "%s:\n", d)
		}
		if err := listDir(out, o, d); err != nil {
			code = exitCode(exit("ls", err))
		}
	}
	return code
}

func listDir(out *bufio.Writer, o *options, dir string) error {
	entries, err := os.ReadDir(dir)
	var names []string
	if o.has("a") {
		names = append(names, ".", "..")
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") || o.has("a") || o.has("A") {
			names = append(names, e.Name())
		}
	}
	printList(out, o, dir, names)
	if o.has("R") {
		for _, e := range entries {
			if e.IsDir() && (!strings.HasPrefix(e.Name(), ".") || o.has("a") || o.has("A")) {
				sub := filepath.Join(dir, e.Name())
				fmt.Fprintf(out, "\n%s:\n", sub)
				err = errors.Join(err, listDir(out, o, sub))
			}
		}
	}
	return err
}

type listed struct {
	name string
	path string
	info fs.FileInfo
	stat *syscall.Stat_t
}

func printList(out *bufio.Writer, o *options, dir string, names []string) {
	var all []listed
	for _, name := range names {
		p := name
		if dir != "" {
			p = filepath.Join(dir, name)
		}
		info, err := os.Lstat(p)
		if err != nil {
			continue // gone since it was listed
		}
		all = append(all, listed{name, p, info, info.Sys().(*syscall.Stat_t)})
	}
	slices.SortStableFunc(all, func(a, b listed) int {
		switch {
		case o.has("t"):
			return b.info.ModTime().Compare(a.info.ModTime())
		case o.has("S"):
			return cmp.Compare(b.info.Size(), a.info.Size())
		}
		return cmp.Compare(a.name, b.name)
	})
	if o.has("r") {
		slices.Reverse(all)
	}
	if o.has("l") && dir != "" {
		var blocks int64
		for _, f := range all {
			blocks += f.stat.Blocks
		}
		fmt.Fprintf(out, "total %d\n", blocks/2)
	}
	var rows [][]string
	for _, f := range all {
		rows = append(rows, row(o, f))
	}
	printTable(out, rows, !o.has("l"))
}

func row(o *options, f listed) []string {
	name := f.name
	if o.has("F") || o.has("p") {
		switch m := f.info.Mode(); {
		case m.IsDir():
			name += "/"
		case o.has("p"):
		case m&fs.ModeSymlink != 0 && !o.has("l"):
			name += "@"
		case m.IsRegular() && m&0o111 != 0:
			name += "*"
		}
	}
	var out []string
	if o.has("i") {
		out = append(out, fmt.Sprint(f.stat.Ino))
	}
	if !o.has("l") {
		return append(out, name)
	}
	size := fmt.Sprint(f.info.Size())
	switch m := f.info.Mode(); {
	case m&fs.ModeDevice != 0:
		size = fmt.Sprintf("%d, %d", unix.Major(f.stat.Rdev), unix.Minor(f.stat.Rdev))
	case o.has("h"):
		size = human(f.info.Size())
	}
	owner, group := userName(int(f.stat.Uid)), groupName(int(f.stat.Gid))
	if o.has("n") {
		owner, group = fmt.Sprint(f.stat.Uid), fmt.Sprint(f.stat.Gid)
	}
	when := f.info.ModTime().Format("Jan _2 15:04")
	if age := time.Since(f.info.ModTime()); age > 180*24*time.Hour || age < -time.Hour {
		when = f.info.ModTime().Format("Jan _2  2006")
	}
	if target, err := os.Readlink(f.path); err == nil {
		name += " -> " + target
	}
	return append(out, modeString(f.info.Mode()), fmt.Sprint(f.stat.Nlink), owner, group, size, when, name)
}

// printTable aligns all columns but the last: numbers to the right.
func printTable(out io.Writer, rows [][]string, plain bool) {
	var width []int
	for _, r := range rows {
		for i, cell := range r {
			if i == len(width) {
				width = append(width, 0)
			}
			width[i] = max(width[i], len(cell))
		}
	}
	for _, r := range rows {
		for i, cell := range r {
			switch {
			case i == len(r)-1:
				fmt.Fprintln(out, cell)
			case plain || cell != "" && cell[0] >= '0' && cell[0] <= '9':
				fmt.Fprintf(out, "%*s ", width[i], cell)
			default:
				fmt.Fprintf(out, "%-*s ", width[i], cell)
			}
		}
	}
}

// modeString is the ten characters of ls -l.
func modeString(m fs.FileMode) string {
	kind := byte('-')
	switch {
	case m.IsDir():
		kind = 'd'
	case m&fs.ModeSymlink != 0:
		kind = 'l'
	case m&fs.ModeCharDevice != 0:
		kind = 'c'
	case m&fs.ModeDevice != 0:
		kind = 'b'
	case m&fs.ModeNamedPipe != 0:
		kind = 'p'
	case m&fs.ModeSocket != 0:
		kind = 's'
	}
	b := []byte(m.Perm().String())
	b[0] = kind
	special := func(bit fs.FileMode, at int, with, without byte) {
		if m&bit != 0 {
			if b[at] == 'x' {
				b[at] = with
			} else {
				b[at] = without
			}
		}
	}
	special(fs.ModeSetuid, 3, 's', 'S')
	special(fs.ModeSetgid, 6, 's', 'S')
	special(fs.ModeSticky, 9, 't', 'T')
	return string(b)
}

// human writes a size as 1.5K or 12M.
func human(n int64) string {
	if n < 1024 {
		return fmt.Sprint(n)
	}
	f, unit := float64(n), -1
	for ; f >= 1024 && unit < 5; unit++ {
		f /= 1024
	}
	if f < 9.95 {
		return fmt.Sprintf("%.1f%c", f, "KMGTPE"[unit])
	}
	return fmt.Sprintf("%.0f%c", f, "KMGTPE"[unit])
}

func userName(uid int) string {
	if u, err := user.LookupId(strconv.Itoa(uid)); err == nil {
		return u.Username
	}
	return strconv.Itoa(uid)
}

func groupName(gid int) string {
	if g, err := user.LookupGroupId(strconv.Itoa(gid)); err == nil {
		return g.Name
	}
	return strconv.Itoa(gid)
}
