-- ARGV[2] and [3] are another node for the job and the body that says so, both empty where it stays.
local j = current(ARGV[1])
if not j then return {'absent'} end
if j.state ~= 'dead' then return {'conflict', j.state} end
local deadline = j.deadline
if deadline > 0 and deadline <= now then deadline = 0 end
call('HSET', job_key(j.id), 'state', 'waiting', 'attempt', 0, 'why', '', 'ended', 0, 'deadline', num(deadline))
if ARGV[2] ~= '' then
  j.node = ARGV[2]
  call('HSET', job_key(j.id), 'node', j.node, 'body', ARGV[3])
end
call('ZREM', P .. 'state:dead', j.id)
call('ZADD', P .. 'open', j.seq, j.id)
line_up(j.id, j.node, j.tenant, j.seq)
schedule(j.id, deadline)
return {'ok'}
