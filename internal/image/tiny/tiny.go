// Package tiny lays out the template "tiny": the userland of cmd/tartarus-tiny and the few files that programs
// expect of a Linux system.
// It needs nothing but the program's bytes: no download, no other program, no root.
package tiny

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/tartarus-sandbox/tartarus/internal/image/erofs"
	"github.com/tartarus-sandbox/tartarus/internal/image/rootfs"
)

// Version changes when the layout does.
const Version = "1"

// Applets are the names under which the program is called. A test beside the program keeps the list true.
var Applets = strings.Fields(`
[ ash base64 basename bash cat chgrp chmod chown clear cp curl cut date dd df dirname du echo egrep env false fgrep find free
grep gunzip gzip head hostname id kill ln ls md5sum mkdir mkfifo mktemp mount mv nc nl nohup nproc pgrep pidof pkill printenv
printf ps pwd readlink realpath rev rm rmdir seq setsid sh sha1sum sha256sum sha512sum sleep sort stat sync tac tail tar tee
test time timeout touch tr true truncate tty umount uname uniq uptime wc wget which whoami xargs yes zcat`)

var files = map[string]string{
	"etc/os-release": "NAME=\"Tartarus tiny\"\nID=tartarus-tiny\nVERSION_ID=" + Version + "\nPRETTY_NAME=\"Tartarus tiny " + Version + "\"\n",
	"etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n" +
		"PS1='\\u@\\h:\\w\\$ '\n",
	"etc/shells":        "/bin/sh\n/bin/bash\n",
	"etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
	"etc/passwd":        "root:*:0:0:root:/root:/bin/sh\nnobody:*:65534:65534:nobody:/nonexistent:/bin/false\n",
	"etc/group":         "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
}

// Add puts the userland into w. rootfs.Finish makes the rest.
func Add(w *erofs.Writer, program []byte) error {
	add := func(path string, mode uint32, target string, data []byte) error {
		e := erofs.Entry{Path: path, Mode: mode, Target: target, ModTime: rootfs.Time, Size: int64(len(data))}
		if err := w.Add(e, bytes.NewReader(data)); err != nil {
			return fmt.Errorf("lay out tiny: %w", err)
		}
		return nil
	}
	for _, d := range []string{"", "usr", "usr/bin", "usr/lib", "usr/local", "usr/local/bin", "usr/local/sbin", "etc", "var", "home", "srv", "opt", "mnt"} {
		if err := add(d, erofs.TypeDir|0o755, "", nil); err != nil {
			return err
		}
	}
	for _, l := range [][2]string{{"bin", "usr/bin"}, {"sbin", "usr/bin"}, {"lib", "usr/lib"}, {"usr/sbin", "bin"}, {"var/run", "/run"}, {"etc/mtab", "/proc/self/mounts"}} {
		if err := add(l[0], erofs.TypeSymlink, l[1], nil); err != nil {
			return err
		}
	}
	if err := add("usr/bin/tartarus-tiny", erofs.TypeRegular|0o755, "", program); err != nil {
		return err
	}
	for _, name := range Applets {
		if err := add("usr/bin/"+name, erofs.TypeSymlink, "tartarus-tiny", nil); err != nil {
			return err
		}
	}
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if err := add(name, erofs.TypeRegular|0o644, "", []byte(files[name])); err != nil {
			return err
		}
	}
	return nil
}
