package firecracker

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"

	"github.com/tartarus-sandbox/tartarus"
	"github.com/tartarus-sandbox/tartarus/internal/vmm"
	"github.com/tartarus-sandbox/tartarus/internal/vmm/manifest"
)

// mostLinks bounds a chain: each link is read whole.
const mostLinks = 256

var _ vmm.Merger = (*Driver)(nil)

// Merge implements vmm.Merger.
func (d *Driver) Merge(ctx context.Context, chain []vmm.Layer, dir string) error {
	if err := d.merge(ctx, chain, dir); err != nil {
		return fmt.Errorf("merge snapshots: %w", err)
	}
	return nil
}

func (d *Driver) merge(ctx context.Context, chain []vmm.Layer, dir string) (err error) {
	links, err := openChain(chain)
	defer func() {
		for _, l := range links {
			l.close()
		}
	}()
	if err != nil {
		return err
	}
	for i, l := range links {
		// Read anew each time, whatever was found whole before: what is merged gets checksums of its own, which would hide damage for good.
		if err := l.man.Verify(ctx, l.files); err != nil {
			return inChain(chain, i, err)
		}
	}
	first, last := links[0], links[len(links)-1]
	to, err := openFolder(dir)
	if err != nil {
		return err
	}
	defer to.Close()
	man := last.man
	man.Base, man.Stands, man.Files = "", last.man.Chain(), nil
	var made []string
	defer func() {
		if err != nil {
			for _, name := range made {
				err = errors.Join(err, os.Remove(inFolder(to, name)))
			}
		}
	}()
	for i, name := range snapshotFiles(len(last.files) > 2) {
		out, err := os.OpenFile(inFolder(to, name), os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o444)
		if err != nil {
			return err
		}
		defer out.Close()
		made = append(made, name)
		if name == memoryName {
			err = mergeMemory(ctx, out, first, links[1:])
		} else {
			err = copyFile(ctx, out, last.files[i])
		}
		if err != nil {
			return err
		}
		sum, err := manifest.Checksum(ctx, out)
		if err != nil {
			return err
		}
		sum.Name = name
		man.Files = append(man.Files, sum)
	}
	made = append(made, manifest.Name)
	return man.Write(dir)
}

// mergeMemory writes over the whole memory what each link of the chain changed.
func mergeMemory(ctx context.Context, out *os.File, whole *stored, diffs []*stored) error {
	if err := copyFile(ctx, out, whole.files[1]); err != nil {
		return err
	}
	for _, l := range diffs {
		from := l.files[1]
		info, err := from.Stat()
		if err != nil {
			return err
		}
		if err := eachExtent(from, info.Size(), func(begin, end int64) error { return copyRange(ctx, out, from, begin, end) }); err != nil {
			return err
		}
	}
	return nil
}

// inChain names the layer that an error is about.
func inChain(chain []vmm.Layer, i int, err error) error {
	return fmt.Errorf("layer %d of %d, %s: %w", i+1, len(chain), chain[i].Name, err)
}

// openChain opens snapshots that build on one another.
func openChain(chain []vmm.Layer) (links []*stored, err error) {
	if len(chain) < 1 || len(chain) > mostLinks {
		return nil, tartarus.Errorf(tartarus.Invalid, "a chain of %d snapshots: 1 to %d are possible", len(chain), mostLinks)
	}
	for i, layer := range chain {
		l := &stored{}
		if l.man, err = manifest.Read(layer.Dir); err != nil {
			return links, inChain(chain, i, err)
		}
		if err := l.follows(links); err != nil {
			return links, inChain(chain, i, err)
		}
		if err := l.open(layer.Dir); err != nil {
			return links, inChain(chain, i, err)
		}
		links = append(links, l)
	}
	return links, nil
}

// follows reports whether l is the next link.
func (l *stored) follows(links []*stored) error {
	if l.man.Driver != Name || l.man.Format != manifest.Format {
		return tartarus.Errorf(tartarus.Unsupported, "it is of runtime %q, format %d", l.man.Driver, l.man.Format)
	}
	if len(links) == 0 {
		if l.man.Base != "" {
			return tartarus.Errorf(tartarus.Invalid, "it holds changes only, and the first must be whole")
		}
		return nil
	}
	before := links[len(links)-1].man
	if l.man.Base != before.Chain() {
		return tartarus.Errorf(tartarus.Invalid, "it does not build on the one before")
	}
	if l.man.Version != before.Version || l.man.RootFS != before.RootFS || !maps.Equal(l.man.Needs, before.Needs) || len(l.man.Files) != len(before.Files) {
		return tartarus.Errorf(tartarus.Invalid, "it is of another machine than the one before")
	}
	return nil
}
