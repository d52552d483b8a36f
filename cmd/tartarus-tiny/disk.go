package main

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stat prints what GNU's does for the formats that scripts use.
func stat(args []string) error {
	o, err := parse("c:Lt", args, "format=c", "printf=c")
	if err != nil {
		return err
	}
	format, ok := o.value["c"]
	if !ok {
		format = "  File: %N\n  Size: %s\tBlocks: %b\tIO Block: %o\t%F\nDevice: %d\tInode: %i\tLinks: %h\n" +
			"Access: (%a/%A)  Uid: (%u/%U)   Gid: (%g/%G)\nModify: %y"
	}
	return each("stat", o.rest, func(p string) error {
		info, err := os.Lstat(p)
		if err == nil && o.has("L") {
			info, err = os.Stat(p)
		}
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		name := p
		if target, err := os.Readlink(p); err == nil {
			name += " -> " + target
		}
		fmt.Println(strings.NewReplacer(
			"%%", "%", "%n", p, "%N", name, "%s", fmt.Sprint(info.Size()), "%b", fmt.Sprint(st.Blocks), "%o", fmt.Sprint(st.Blksize),
			"%F", kind(info.Mode()), "%d", fmt.Sprint(st.Dev), "%i", fmt.Sprint(st.Ino), "%h", fmt.Sprint(st.Nlink),
			"%a", strconv.FormatUint(uint64(st.Mode&0o7777), 8), "%A", modeString(info.Mode()),
			"%u", fmt.Sprint(st.Uid), "%U", userName(int(st.Uid)), "%g", fmt.Sprint(st.Gid), "%G", groupName(int(st.Gid)),
			"%y", info.ModTime().Format("2006-01-02 15:04:05.000000000 -0700"), "%Y", fmt.Sprint(info.ModTime().Unix()),
		).Replace(format))
		return nil
	})
}

func kind(m fs.FileMode) string {
	switch {
	case m.IsDir():
		return "directory"
	case m&fs.ModeSymlink != 0:
		return "symbolic link"
	case m&fs.ModeCharDevice != 0:
		return "character special file"
	case m&fs.ModeDevice != 0:
		return "block special file"
	case m&fs.ModeNamedPipe != 0:
		return "fifo"
	case m&fs.ModeSocket != 0:
		return "socket"
	}
	return "regular file"
}

func du(args []string) error {
	o, err := parse("sahkmbcd:x", args, "summarize=s", "human-readable=h", "max-depth=d", "bytes=b")
	if err != nil {
		return err
	}
	if len(o.rest) == 0 {
		o.rest = []string{"."}
	}
	depth := 1 << 30
	if o.has("s") {
		depth = 0
	} else if o.has("d") {
		if depth, err = strconv.Atoi(o.value["d"]); err != nil {
			return usage("-d needs a number")
		}
	}
	show := func(n int64, p string) {
		text := fmt.Sprint((n + 1023) / 1024)
		switch {
		case o.has("h"):
			text = human(n)
		case o.has("b"):
			text = fmt.Sprint(n)
		case o.has("m"):
			text = fmt.Sprint((n + 1<<20 - 1) >> 20)
		}
		fmt.Printf("%s\t%s\n", text, p)
	}
	seen := map[uint64]bool{}
	var size func(p string, level int) (int64, error)
	size = func(p string, level int) (int64, error) {
		info, err := os.Lstat(p)
		if err != nil {
			return 0, err
		}
		st := info.Sys().(*syscall.Stat_t)
		total := st.Blocks * 512
		if o.has("b") {
			total = info.Size()
		}
		if !info.IsDir() {
			if st.Nlink > 1 && seen[st.Ino] {
				return 0, nil
			}
			seen[st.Ino] = true
			if o.has("a") && level <= depth || level == 0 {
				show(total, p)
			}
			return total, nil
		}
		entries, err := os.ReadDir(p)
		for _, e := range entries {
			n, sub := size(filepath.Join(p, e.Name()), level+1)
			if sub != nil {
				exit("du", sub)
				err = exitCode(1)
			}
			total += n
		}
		if level <= depth {
			show(total, p)
		}
		return total, err
	}
	return each("du", o.rest, func(p string) error { _, err := size(p, 0); return err })
}

func df(args []string) error {
	o, err := parse("hkPTa", args, "human-readable=h")
	if err != nil {
		return err
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return err
	}
	rows := [][]string{{"Filesystem", "1K-blocks", "Used", "Available", "Use%", "Mounted on"}}
	for line := range strings.Lines(string(mounts)) {
		f := strings.Fields(line)
		var st unix.Statfs_t
		if len(f) < 3 || unix.Statfs(f[1], &st) != nil || st.Blocks == 0 {
			continue
		}
		if len(o.rest) > 0 {
			var a, b unix.Stat_t
			if unix.Stat(o.rest[0], &a) != nil || unix.Stat(f[1], &b) != nil || a.Dev != b.Dev {
				continue
			}
		}
		unit := int64(st.Bsize)
		used := int64(st.Blocks-st.Bfree) * unit
		show := func(n int64) string {
			if o.has("h") {
				return human(n)
			}
			return fmt.Sprint(n / 1024)
		}
		percent := "-"
		if whole := used + int64(st.Bavail)*unit; whole > 0 {
			percent = fmt.Sprintf("%d%%", (used*100+whole-1)/whole)
		}
		rows = append(rows, []string{f[0], show(int64(st.Blocks) * unit), show(used), show(int64(st.Bavail) * unit), percent, f[1]})
	}
	printTable(os.Stdout, rows, false)
	return nil
}

// dd copies blocks: if of bs count skip seek conv=notrunc,fsync status=none.
func dd(args []string) error {
	opt := map[string]string{"bs": "512", "count": "-1", "skip": "0", "seek": "0"}
	for _, a := range args {
		name, value, ok := strings.Cut(a, "=")
		switch name {
		case "if", "of", "bs", "ibs", "obs", "count", "skip", "seek", "conv", "status", "iflag", "oflag":
		default:
			ok = false
		}
		if !ok {
			return usage("%s: unknown operand", a)
		}
		opt[name] = value
	}
	bs, err := parseSize(opt["bs"])
	if err != nil || bs < 1 || bs > 1<<30 {
		return usage("bs must be from 1 to 1G")
	}
	var n [3]int64
	for i, name := range []string{"count", "skip", "seek"} {
		if opt[name] == "-1" {
			n[i] = -1
		} else if n[i], err = parseSize(opt[name]); err != nil {
			return err
		}
	}
	in, out := os.Stdin, os.Stdout
	if p := opt["if"]; p != "" {
		if in, err = os.Open(p); err != nil {
			return err
		}
		defer in.Close()
	}
	if p := opt["of"]; p != "" {
		flags := os.O_WRONLY | os.O_CREATE
		if !strings.Contains(opt["conv"], "notrunc") && n[2] == 0 {
			flags |= os.O_TRUNC
		}
		if out, err = os.OpenFile(p, flags, 0o666); err != nil {
			return err
		}
		defer out.Close()
	}
	if n[1] > 0 {
		if _, err := in.Seek(n[1]*bs, io.SeekCurrent); err != nil {
			if _, err := io.CopyN(io.Discard, in, n[1]*bs); err != nil {
				return err
			}
		}
	}
	if n[2] > 0 {
		if _, err := out.Seek(n[2]*bs, io.SeekStart); err != nil {
			return err
		}
	}
	return copyBlocks(in, out, bs, n[0], opt)
}

func copyBlocks(in, out *os.File, bs, count int64, opt map[string]string) error {
	start, buf := time.Now(), make([]byte, bs)
	var full, partial, total int64
	for count < 0 || full+partial < count {
		n, err := io.ReadFull(in, buf)
		if n == 0 {
			if err != io.EOF {
				return err
			}
			break
		}
		if _, err := out.Write(buf[:n]); err != nil {
			return err
		}
		total += int64(n)
		if int64(n) == bs {
			full++
		} else {
			partial++
		}
	}
	if strings.Contains(opt["conv"], "sync") { // fsync, fdatasync
		if err := out.Sync(); err != nil {
			return err
		}
	}
	if opt["status"] != "none" {
		took := time.Since(start).Seconds()
		fmt.Fprintf(os.Stderr, "%d+%d records in\n%d+%d records out\n%d bytes (%s) copied, %.4f s, %sB/s\n",
			full, partial, full, partial, total, human(total), took, human(int64(float64(total)/max(took, 1e-9))))
	}
	return nil
}
