package main

import (
	"bufio"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"fmt"
	"hash"
	"io"
	"os"
	"os/user"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

var systemApplets = map[string]applet{
	"id": id, "whoami": whoami, "hostname": hostname, "uname": uname, "date": date, "free": free, "uptime": uptime,
	"mount": mount, "umount": umount, "clear": clearScreen, "tty": tty,
	"md5sum": sum("md5sum", md5.New), "sha1sum": sum("sha1sum", sha1.New),
	"sha256sum": sum("sha256sum", sha256.New), "sha512sum": sum("sha512sum", sha512.New),
}

func id(args []string) error {
	o, err := parse("ugGnr", args)
	if err != nil {
		return err
	}
	uid, gid := os.Getuid(), os.Getgid()
	groups, _ := os.Getgroups()
	if len(o.rest) > 0 {
		u, err := user.Lookup(o.rest[0])
		if err != nil {
			return fmt.Errorf("%s: no such user", o.rest[0])
		}
		uid, _ = strconv.Atoi(u.Uid)
		gid, _ = strconv.Atoi(u.Gid)
		groups = nil
		ids, _ := u.GroupIds()
		for _, g := range ids {
			n, _ := strconv.Atoi(g)
			groups = append(groups, n)
		}
	}
	if len(groups) == 0 {
		groups = []int{gid}
	}
	show := func(n int, name func(int) string) string {
		if o.has("n") {
			return name(n)
		}
		return strconv.Itoa(n)
	}
	switch {
	case o.has("u"):
		fmt.Println(show(uid, userName))
	case o.has("g"):
		fmt.Println(show(gid, groupName))
	case o.has("G"):
		var all []string
		for _, g := range groups {
			all = append(all, show(g, groupName))
		}
		fmt.Println(strings.Join(all, " "))
	default:
		var all []string
		for _, g := range groups {
			all = append(all, fmt.Sprintf("%d(%s)", g, groupName(g)))
		}
		fmt.Printf("uid=%d(%s) gid=%d(%s) groups=%s\n", uid, userName(uid), gid, groupName(gid), strings.Join(all, ","))
	}
	return nil
}

func whoami([]string) error {
	fmt.Println(userName(os.Geteuid()))
	return nil
}

func hostname(args []string) error {
	if len(args) > 0 && !strings.HasPrefix(args[0], "-") {
		return unix.Sethostname([]byte(args[0]))
	}
	name, err := os.Hostname()
	if err == nil {
		fmt.Println(name)
	}
	return err
}

func uname(args []string) error {
	o, err := parse("asnrvmpo", args, "all=a")
	if err != nil {
		return err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return err
	}
	if len(o.count) == 0 {
		o.count["s"] = 1
	}
	var out []string
	for _, f := range []struct {
		flag  string
		value string
	}{
		{"s", unix.ByteSliceToString(u.Sysname[:])}, {"n", unix.ByteSliceToString(u.Nodename[:])}, {"r", unix.ByteSliceToString(u.Release[:])},
		{"v", unix.ByteSliceToString(u.Version[:])}, {"m", unix.ByteSliceToString(u.Machine[:])}, {"o", "GNU/Linux"},
	} {
		if o.has("a") || o.has(f.flag) {
			out = append(out, f.value)
		}
	}
	fmt.Println(strings.Join(out, " "))
	return nil
}

// date prints the time; it reads -d in the forms that scripts use.
func date(args []string) error {
	format, when, utc := "", time.Now(), false
	for i := 0; i < len(args); i++ {
		switch a := args[i]; {
		case a == "-u" || a == "--utc":
			utc = true
		case strings.HasPrefix(a, "+"):
			format = a[1:]
		case a == "-I" || a == "-Iseconds":
			format = map[string]string{"-I": "%Y-%m-%d", "-Iseconds": "%Y-%m-%dT%H:%M:%S%:z"}[a]
		case a == "-R":
			format = "%a, %d %b %Y %H:%M:%S %z"
		case a == "-d" && i+1 < len(args):
			i++
			t, err := parseDate(args[i])
			if err != nil {
				return err
			}
			when = t
		case a == "-r" && i+1 < len(args):
			i++
			info, err := os.Stat(args[i])
			if err != nil {
				return err
			}
			when = info.ModTime()
		default:
			return usage("%s: unknown", a)
		}
	}
	if utc {
		when = when.UTC()
	}
	if format == "" {
		format = "%a %b %e %H:%M:%S %Z %Y"
	}
	fmt.Println(strftime(format, when))
	return nil
}

func parseDate(s string) (time.Time, error) {
	if n, ok := strings.CutPrefix(s, "@"); ok {
		if sec, err := strconv.ParseInt(n, 10, 64); err == nil {
			return time.Unix(sec, 0), nil
		}
	}
	if s == "now" {
		return time.Now(), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			return t, nil
		}
	}
	return time.Time{}, usage("%q: unknown date", s)
}

func strftime(format string, t time.Time) string {
	layouts := map[byte]string{
		'Y': "2006", 'm': "01", 'd': "02", 'e': "_2", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'N': "000000000", 'p': "PM", 'y': "06", 'j': "002",
		'a': "Mon", 'A': "Monday", 'b': "Jan", 'h': "Jan", 'B': "January", 'Z': "MST", 'z': "-0700", 'T': "15:04:05", 'R': "15:04", 'F': "2006-01-02",
		'D': "01/02/06", 'c': "Mon Jan _2 15:04:05 2006",
	}
	var b strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' || i+1 == len(format) {
			b.WriteByte(format[i])
			continue
		}
		i++
		switch c := format[i]; c {
		case 'N':
			fmt.Fprintf(&b, "%09d", t.Nanosecond())
		case 's':
			fmt.Fprint(&b, t.Unix())
		case '%':
			b.WriteByte('%')
		case 'n':
			b.WriteByte('\n')
		case 'u':
			fmt.Fprint(&b, (int(t.Weekday())+6)%7+1)
		case 'w':
			fmt.Fprint(&b, int(t.Weekday()))
		case ':':
			if i+1 < len(format) && format[i+1] == 'z' {
				i++
				b.WriteString(t.Format("-07:00"))
			}
		default:
			if l, ok := layouts[c]; ok {
				b.WriteString(t.Format(l))
			} else {
				b.WriteString("%" + string(c))
			}
		}
	}
	return b.String()
}

func free(args []string) error {
	o, err := parse("hmkgbw", args)
	if err != nil {
		return err
	}
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return err
	}
	kb := map[string]int64{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) > 1 {
			kb[strings.TrimSuffix(f[0], ":")], _ = strconv.ParseInt(f[1], 10, 64)
		}
	}
	show := func(n int64) string {
		switch {
		case o.has("h"):
			return human(n * 1024)
		case o.has("m"):
			return fmt.Sprint(n / 1024)
		case o.has("g"):
			return fmt.Sprint(n >> 20)
		case o.has("b"):
			return fmt.Sprint(n * 1024)
		}
		return fmt.Sprint(n)
	}
	cache := kb["Buffers"] + kb["Cached"] + kb["SReclaimable"]
	available, ok := kb["MemAvailable"]
	if !ok {
		available = kb["MemFree"] + cache
	}
	fmt.Printf("%-7s%11s %11s %11s %11s %11s %11s\n", "", "total", "used", "free", "shared", "buff/cache", "available")
	fmt.Printf("%-7s%11s %11s %11s %11s %11s %11s\n", "Mem:", show(kb["MemTotal"]), show(kb["MemTotal"]-available), show(kb["MemFree"]),
		show(kb["Shmem"]), show(cache), show(available))
	fmt.Printf("%-7s%11s %11s %11s\n", "Swap:", show(kb["SwapTotal"]), show(kb["SwapTotal"]-kb["SwapFree"]), show(kb["SwapFree"]))
	return nil
}

func uptime([]string) error {
	b, err := os.ReadFile("/proc/uptime")
	if err != nil {
		return err
	}
	seconds, _, _ := strings.Cut(string(b), ".")
	n, _ := strconv.Atoi(seconds)
	load, _ := os.ReadFile("/proc/loadavg")
	f := strings.Fields(string(load) + " 0 0 0")
	fmt.Printf(" %s up %d days, %2d:%02d, load average: %s, %s, %s\n", time.Now().Format("15:04:05"), n/86400, n/3600%24, n/60%60, f[0], f[1], f[2])
	return nil
}

func mount(args []string) error {
	o, err := parse("t:o:rwv", args, "bind=B", "types=t", "options=o")
	if err != nil {
		return err
	}
	if len(o.rest) == 0 {
		b, err := os.ReadFile("/proc/mounts")
		if err != nil {
			return err
		}
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 3 {
				fmt.Printf("%s on %s type %s (%s)\n", f[0], f[1], f[2], f[3])
			}
		}
		return nil
	}
	if len(o.rest) != 2 {
		return usage("mount [-t TYPE] [-o OPTIONS] SOURCE TARGET")
	}
	var flags uintptr
	var data []string
	if o.has("r") {
		flags |= unix.MS_RDONLY
	}
	known := map[string]uintptr{"ro": unix.MS_RDONLY, "rw": 0, "bind": unix.MS_BIND, "rbind": unix.MS_BIND | unix.MS_REC, "remount": unix.MS_REMOUNT,
		"nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "noatime": unix.MS_NOATIME, "defaults": 0, "private": unix.MS_PRIVATE}
	for opt := range strings.SplitSeq(o.value["o"], ",") {
		if flag, ok := known[opt]; ok {
			flags |= flag
		} else if opt != "" {
			data = append(data, opt)
		}
	}
	if err := unix.Mount(o.rest[0], o.rest[1], o.value["t"], flags, strings.Join(data, ",")); err != nil {
		return fmt.Errorf("mounting %s on %s: %w", o.rest[0], o.rest[1], err)
	}
	return nil
}

func umount(args []string) error {
	o, err := parse("lf", args, "lazy=l", "force=f")
	if err != nil {
		return err
	}
	return each("umount", o.rest, func(p string) error {
		if err := unix.Unmount(p, unix.MNT_DETACH*btoi(o.has("l"))|unix.MNT_FORCE*btoi(o.has("f"))); err != nil {
			return fmt.Errorf("%s: %w", p, err)
		}
		return nil
	})
}

func clearScreen([]string) error {
	fmt.Print("\x1b[H\x1b[2J\x1b[3J")
	return nil
}

func tty([]string) error {
	name, err := os.Readlink("/proc/self/fd/0")
	if err != nil || !strings.HasPrefix(name, "/dev/pts/") && !strings.HasPrefix(name, "/dev/tty") {
		fmt.Println("not a tty")
		return exitCode(1)
	}
	fmt.Println(name)
	return nil
}

// sum makes md5sum and its like, which also check with -c.
func sum(name string, make func() hash.Hash) applet {
	of := func(r io.Reader) (string, error) {
		h := make()
		_, err := io.Copy(h, r)
		return fmt.Sprintf("%x", h.Sum(nil)), err
	}
	return func(args []string) error {
		o, err := parse("cbt", args, "check=c", "status=s")
		if err != nil {
			return err
		}
		return input(name, o.rest, func(file string, r io.Reader) error {
			if o.has("c") {
				return checkSums(r, of)
			}
			s, err := of(r)
			if err == nil {
				fmt.Printf("%s  %s\n", s, file)
			}
			return err
		})
	}
}

func checkSums(r io.Reader, of func(io.Reader) (string, error)) error {
	var code error
	for in := bufio.NewScanner(r); in.Scan(); {
		want, file, ok := strings.Cut(in.Text(), " ")
		if !ok {
			continue
		}
		file = strings.TrimLeft(file, " *")
		f, err := os.Open(file)
		if err != nil {
			return err
		}
		have, err := of(f)
		f.Close()
		if err != nil {
			return err
		}
		if have == strings.ToLower(want) {
			fmt.Printf("%s: OK\n", file)
		} else {
			fmt.Printf("%s: FAILED\n", file)
			code = exitCode(1)
		}
	}
	return code
}
