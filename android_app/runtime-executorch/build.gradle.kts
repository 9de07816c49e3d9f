plugins { alias(libs.plugins.android.library) }

android {
    namespace = "org.mobileclip.executorch"
    compileSdk = 37
    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
    defaultConfig.minSdk = 26
}

dependencies {
    api(project(":core"))
    api(libs.executorch.android)
}
