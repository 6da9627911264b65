// Makes the replica set of one and the user that Bellbuoy connects as. Safe to run again.
const { ROOT_PASSWORD, BELLBUOY_PASSWORD } = process.env;
const root = encodeURIComponent(ROOT_PASSWORD);
const server = connect(`mongodb://root:${root}@mongodb:27017/admin?directConnection=true`);

try {
  server.adminCommand({ replSetGetStatus: 1 });
} catch (error) {
  if (error.codeName !== "NotYetInitialized") throw error;
  server.adminCommand({
    replSetInitiate: { _id: "bellbuoy", members: [{ _id: 0, host: "mongodb:27017" }] },
  });
}

for (let tries = 0; !server.hello().isWritablePrimary; tries += 1) {
  if (tries === 60) throw new Error("no primary within a minute");
  sleep(1000);
}

const database = server.getSiblingDB("bellbuoy");
const roles = [{ role: "readWrite", db: "bellbuoy" }];
if (database.getUser("bellbuoy") === null) {
  database.createUser({ user: "bellbuoy", pwd: BELLBUOY_PASSWORD, roles });
} else {
  database.updateUser("bellbuoy", { pwd: BELLBUOY_PASSWORD, roles });
}
