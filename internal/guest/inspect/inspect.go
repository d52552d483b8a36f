// Package inspect shows what goes on in a guest: its processes, its sockets, and the files that changed since it began. It only looks, follows
// no link, and what it returns is bounded, whatever the guest is full of.
package inspect

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/tartarus-sandbox/tartarus"
)

// Bounds of what is returned: with paths of a hundred bytes, some five megabytes.
const (
	maxProcesses = 4096
	maxSockets   = 8192
	maxFiles     = 20_000
	maxArgv      = 4096      // bytes of one command line
	maxHashed    = 16 << 20  // bytes of a file that is hashed
	hashBudget   = 256 << 20 // bytes of all of them
)

// Guest looks at the guest whose root is root, "/" except in tests. ctx bounds the time; what could not be seen by then is missing, and Truncated.
func Guest(ctx context.Context, root string, since time.Time) tartarus.Inspection {
	l := looker{root: root, since: since}
	l.processes(ctx)
	l.sockets()
	l.files(ctx)
	return l.out
}

type looker struct {
	root   string
	since  time.Time
	hashed int64
	out    tartarus.Inspection
}

func (l *looker) path(parts ...string) string {
	return filepath.Join(append([]string{l.root}, parts...)...)
}

func (l *looker) processes(ctx context.Context) {
	entries, err := os.ReadDir(l.path("proc"))
	if err != nil {
		l.out.Truncated = true
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if len(l.out.Processes) == maxProcesses || ctx.Err() != nil {
			l.out.Truncated = true
			return
		}
		if p, ok := l.process(pid); ok {
			l.out.Processes = append(l.out.Processes, p)
		}
	}
}

// process reads one; a process that has just ended is none.
func (l *looker) process(pid int) (p tartarus.GuestProcess, ok bool) {
	dir := l.path("proc", strconv.Itoa(pid))
	status, err := readSome(filepath.Join(dir, "status"), 16<<10)
	if err != nil {
		return p, false
	}
	p.PID = pid
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields := strings.Fields(value)
		if len(fields) == 0 {
			continue
		}
		switch key {
		case "PPid":
			p.Parent, _ = strconv.Atoi(fields[0])
		case "Uid":
			p.UID, _ = strconv.Atoi(fields[0])
		case "State":
			p.State = fields[0]
		}
	}
	p.Program, _ = os.Readlink(filepath.Join(dir, "exe"))
	p.Dir, _ = os.Readlink(filepath.Join(dir, "cwd"))
	if argv, err := readSome(filepath.Join(dir, "cmdline"), maxArgv); err == nil && len(argv) > 0 {
		for part := range bytes.SplitSeq(bytes.TrimSuffix(argv, []byte{0}), []byte{0}) {
			p.Argv = append(p.Argv, strings.ToValidUTF8(string(part), "?"))
		}
	}
	return p, true
}

func readSome(path string, most int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, most))
}

var tcpStates = map[string]string{
	"01": "established", "02": "syn-sent", "03": "syn-received", "04": "fin-wait-1", "05": "fin-wait-2", "06": "time-wait",
	"07": "closed", "08": "close-wait", "09": "last-ack", "0A": "listening", "0B": "closing",
}

func (l *looker) sockets() {
	for _, proto := range []string{"tcp", "tcp6", "udp", "udp6"} {
		f, err := os.Open(l.path("proc", "net", proto))
		if err != nil {
			continue // a kernel without it has no such sockets
		}
		lines := bufio.NewScanner(f)
		lines.Scan() // the heading
		for lines.Scan() {
			if len(l.out.Sockets) == maxSockets {
				l.out.Truncated = true
				break
			}
			if s, ok := socket(proto, lines.Text()); ok {
				l.out.Sockets = append(l.out.Sockets, s)
			}
		}
		_ = f.Close()
	}
}

// socket reads a line of /proc/net/tcp and its like: slot, local and remote as hexadecimal, state, queues, timer, retransmissions, uid.
func socket(proto, line string) (s tartarus.GuestSocket, ok bool) {
	f := strings.Fields(line)
	if len(f) < 8 {
		return s, false
	}
	local, err1 := endpoint(f[1])
	remote, err2 := endpoint(f[2])
	uid, err3 := strconv.Atoi(f[7])
	if err1 != nil || err2 != nil || err3 != nil {
		return s, false
	}
	state := tcpStates[f[3]]
	if strings.HasPrefix(proto, "udp") {
		state = ""
	}
	return tartarus.GuestSocket{Proto: proto, Local: local.String(), Remote: remote.String(), State: state, UID: uid}, true
}

// endpoint reads ADDRESS:PORT as the kernel prints it: words of four bytes in the host's order.
func endpoint(s string) (netip.AddrPort, error) {
	address, port, _ := strings.Cut(s, ":")
	b, err := hex.DecodeString(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	for word := range slices.Chunk(b, 4) {
		slices.Reverse(word)
	}
	addr, ok := netip.AddrFromSlice(b)
	n, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, fmt.Errorf("%q is no endpoint", s)
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}

// elsewhere are folders whose content is no file's.
var elsewhere = []string{"proc", "sys", "dev"}

func (l *looker) files(ctx context.Context) {
	err := filepath.WalkDir(l.root, func(path string, d fs.DirEntry, err error) error {
		if ctx.Err() != nil || len(l.out.Files) == maxFiles {
			l.out.Truncated = true
			return fs.SkipAll
		}
		if err != nil {
			return nil // what has gone since is not there
		}
		rel, _ := filepath.Rel(l.root, path)
		if d.IsDir() {
			if slices.Contains(elsewhere, rel) {
				return fs.SkipDir
			}
			return nil
		}
		if f, ok := l.file(path, rel, d); ok {
			l.out.Files = append(l.out.Files, f)
		}
		return nil
	})
	l.out.Truncated = l.out.Truncated || err != nil
}

// file describes one that changed. What counts is the time of its inode, which no program in the guest can set to an earlier one.
func (l *looker) file(path, rel string, d fs.DirEntry) (f tartarus.GuestFile, ok bool) {
	info, err := d.Info()
	if err != nil {
		return f, false
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return f, false
	}
	changed := time.Unix(st.Ctim.Unix())
	if !changed.After(l.since) {
		return f, false
	}
	f = tartarus.GuestFile{
		Path: "/" + strings.ToValidUTF8(rel, "?"), Size: info.Size(), Mode: info.Mode().String(), UID: int(st.Uid), GID: int(st.Gid), Changed: changed.UTC(),
		Executable: info.Mode().IsRegular() && info.Mode().Perm()&0o111 != 0, Setuid: info.Mode()&(fs.ModeSetuid|fs.ModeSetgid) != 0,
	}
	switch {
	case info.Mode()&fs.ModeSymlink != 0:
		f.Target, _ = os.Readlink(path)
	case info.Mode().IsRegular() && info.Size() <= maxHashed && l.hashed+info.Size() <= hashBudget:
		l.hashed += info.Size()
		f.SHA256 = digest(path)
	}
	return f, true
}

// digest reads a file, if it still is one: a pipe put in its place would never end.
func digest(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return ""
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.LimitReader(f, maxHashed)); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
}
