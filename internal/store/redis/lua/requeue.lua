local id = ARGV[1]
local j = call('HMGET', job_key(id), 'state', 'deadline', 'node', 'tenant', 'seq')
if not j[1] then return {'absent'} end
if j[1] ~= 'dead' then return {'conflict', j[1]} end
local deadline = tonumber(j[2])
if deadline > 0 and deadline <= now then deadline = 0 end
call('HSET', job_key(id), 'state', 'waiting', 'attempt', 0, 'why', '', 'ended', 0, 'deadline', num(deadline))
call('ZREM', P .. 'state:dead', id)
call('ZREM', P .. 'ended', id)
call('ZADD', P .. 'open', j[5], id)
line_up(id, j[3], j[4], j[5])
schedule(id, deadline)
return {'ok'}
